"""A folder of a model is settings and numbers: no Python file of it runs, and no pickle is opened."""

import ast
import json
import pickle
from pathlib import Path

import pytest
import torch

from data.chat.tokenizers import open_tokenizer
from launcher.checkpoints.pretrained import config_of
from models.codecs.diffusers_vae import DiffusersCodecConfig, weights_of
from models.codecs.open_codec import open_codec
from models.codecs.vq import open_codes
from models.language.hf_config import read_config
from parallel.errors import InputError
from parallel.hf_folder import from_folder

HOME = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("data", "launcher", "models", "parallel", "benchmarks")
LOADERS = {"from_pretrained", "from_single_file", "load_state_dict_from_url", "hf_hub_download", "snapshot_download"}


class Bomb:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def hostile(tmp_path) -> tuple[Path, Path]:
    """A folder whose config, tokenizer and processor are code of its own, and what the code would leave behind."""
    folder, mark = tmp_path / "model", tmp_path / "it ran"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil:\n    pass\n")
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoProcessor", "AutoImageProcessor")
    code = {"auto_map": {**dict.fromkeys(names, "evil.Evil"), "AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", **code}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Evil", **code}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "Evil", **code}))
    return folder, mark


def test_code_of_a_folder_does_not_run(hostile, monkeypatch):
    from transformers import AutoImageProcessor

    folder, mark = hostile
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # what somebody types who is asked
    for opened in (read_config, config_of, lambda path: open_tokenizer(str(path))):
        with pytest.raises(InputError, match="no code of its own"):
            opened(folder)
    with pytest.raises(InputError, match="brings no code of its own"):
        from_folder(AutoImageProcessor, folder)
    assert not mark.exists()


def test_weights_that_are_pickles_are_not_opened(tmp_path):
    import diffusers

    kinds = {"AutoencoderKL": diffusers.AutoencoderKL, "VQModel": diffusers.VQModel}
    mark = tmp_path / "it ran"
    for name, kind in kinds.items():
        shape = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
        folder = tmp_path / name
        kind(**shape, block_out_channels=(4,), norm_num_groups=2).save_pretrained(folder)
        (folder / "diffusion_pytorch_model.safetensors").unlink()
        (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
        with pytest.raises(FileNotFoundError):
            weights_of(folder)
    with pytest.raises(InputError):
        open_codec(DiffusersCodecConfig(path=tmp_path / "AutoencoderKL"), (1, 2, 2))
    with pytest.raises(InputError, match="as safetensors"):
        open_codes(str(tmp_path / "VQModel"))
    assert not mark.exists()


def calls_of(file: Path) -> list[tuple[str, ast.Call]]:
    """(last name, call) of each call in a file."""
    found = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    return [(f.attr if isinstance(f := node.func, ast.Attribute) else getattr(f, "id", ""), node) for node in found]


def test_folders_are_opened_in_one_place_and_nothing_else_is_unpickled():
    """Whoever adds a way to open a folder meets this."""
    for package in PACKAGES:
        for file in sorted((HOME / package).rglob("*.py")):
            where = str(file.relative_to(HOME))
            for name, call in calls_of(file):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                text = ast.unparse(call.func)
                if name in LOADERS:
                    assert where == "parallel/hf_folder.py", f"{where}: {text}"
                if text == "torch.load":
                    assert given.get("weights_only") == "True", f"{where}: {text}"
                if text in ("np.load", "numpy.load"):
                    assert given.get("allow_pickle", "False") == "False", f"{where}: {text}"
                if text.startswith(("pickle.load", "dill.", "cloudpickle.load", "joblib.load")):
                    assert where == "data/workers/processes.py", f"{where}: {text}"  # from a process of ours
                assert given.get("trust_remote_code", "False") == "False", f"{where}: {text}"


def test_a_pickle_of_a_checkpoint_is_not_run(tmp_path):
    file, mark = tmp_path / "w.pt", tmp_path / "it ran"
    torch.save({"w": Bomb(mark)}, file)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
    assert not mark.exists()
