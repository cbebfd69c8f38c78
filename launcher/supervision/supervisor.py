"""Who sees a run through: starts its ranks, watches them, says what went wrong, and starts them again.

start -> watch --all done--> 0
  ^        |--asked to stop, checkpoint saved--> 75
  |        |--a rank refused its input--> 2
  |        |--nodes came back: stop with a checkpoint--+
  +--------+--a rank failed, died or hangs: kill all --+--restarts left, on the mesh that fits the nodes that are left
                                                       +--none left, or it would happen again--> 1
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console

from launcher.batches.idle_replicas import Deal
from launcher.checkpoints.reading import Checkpoint, newest, trusting
from launcher.checkpoints.storage import open_storage
from launcher.config.proposed_commands import filled
from launcher.config.run_config import RunConfig
from launcher.config.sections import MeshConfig
from launcher.core import stacks
from launcher.core.run_folder import RunFolder
from launcher.supervision.attempt import AttemptEnd, Failure, StopRequests, is_same
from launcher.supervision.console_view import Screen, describe
from launcher.supervision.failure_causes import cause_of, last_line
from launcher.supervision.rank_group import (
    NODE,
    End,
    HeadGoneError,
    How,
    LostError,
    NoCapacityError,
    Ranks,
    Where,
    culprit,
    is_bad,
    is_echo,
)
from launcher.supervision.watchdog import Hang, Watchdog
from launcher.training.hang_timeout import patience
from parallel import shell
from parallel.errors import InputError
from parallel.mesh import Mesh

DONE, FAILED, REFUSED, STOPPED = 0, 1, 2, 75
POLL_SECONDS = 0.2
BEAT_SECONDS = 1.0
GROW_SECONDS = 5.0  # between two looks for nodes that came back; two in a row must find them
EMPTY_SECONDS = 600.0  # to wait for any node at all


class Supervisor:
    """Sees one run through.

    Args:
        config: of the run.
        ranks: how ranks are started here.
        screen: shows what is recorded.
        asked: counts requests to stop.
        console: for a person.
        flops: of the dearest pack (`patience.pack_flops`).
    """

    def __init__(
        self, config: RunConfig, ranks: Ranks, screen: Screen, asked: StopRequests, console: Console, flops: float = 0.0
    ) -> None:
        self.flops = flops
        self.config, self.ranks, self.screen, self.asked, self.console = config, ranks, screen, asked, console
        self.folder = RunFolder(config.out)
        self.wanted = config.mesh.mesh()
        self.mesh = self.wanted
        self.attempt, self.saved = 0, ""
        self.starts = 0
        self.before: tuple[int, str] | None = None
        self.places: dict[int, Where] = {}
        self.grows = False
        self.refused = False  # and it was told
        self.seen = 0  # steps on the screen when the ranks were started
        self.fits = set[Mesh]()  # meshes on which steps were done
        self.memory: str | None = None  # the newest checkpoint when memory last ran out

    def run(self) -> int:
        """Start the ranks until they end well, or too often badly; gives the exit code.

        Raises:
            InputError: of a rank, or because the ranks cannot be placed.
        """
        try:
            while True:
                code = self._attempt()
                if code is not None:
                    return code
        except InputError as error:
            if not self.refused:
                cause = "node" if isinstance(error, HeadGoneError) else "input"
                told = {"cause": cause, "words": f"{error.rule}; found: {error.value}", "remedy": error.remedy}
                self._record("failure", rank=-1, how="refused", step=self.screen.done, reason=error.value, **told)
            raise
        finally:
            self.screen.close()

    def _attempt(self) -> int | None:
        """One start and its end; the exit code, or None to go on."""
        self.grows = False
        try:
            if not self._start():
                self._record("stop", step=self.screen.done, reason="while it waited for room")
                return STOPPED
            verdict = self._watch()
        except LostError as error:
            how: How = "failed" if error.trace else "died"
            end = End(-1, how, self.screen.done, error.trace or str(error), sign="" if error.trace else NODE)
            verdict = AttemptEnd([end])
        self.ranks.kill()
        self.screen.update()
        if verdict.cut_short:
            self._record("stop", step=self.screen.done, reason="killed on request")
            return FAILED
        bad = culprit(verdict.ends)
        if bad is None and verdict.hang is None:
            return self._ended_well(verdict.ends)
        failure = self._explain(bad, verdict)
        self._tell_others(verdict.ends, failure.end)
        return self._after(failure)

    def _start(self) -> bool:
        """Start the ranks on the mesh that fits; whether they were, or a person asked to stop while we waited."""
        before, self.wanted = self.wanted, self.config.mesh_after(self._saved_step())
        mesh = self._fitting()
        if mesh is None:
            return False
        if mesh != self.mesh:
            why = "the next segment has another" if before != self.wanted else self._why_another(mesh)
            deal = Deal(self.config.data.packs_per_step, mesh.replica)
            why += f"; {deal}" if deal.empty else ""
            if self.starts or mesh != self.wanted:
                self._record("mesh", **{"from": str(self.mesh), "to": str(mesh), "reason": why})
        self.mesh = mesh
        of_mesh = MeshConfig(replica=mesh.replica, ring=mesh.ring, ulysses=mesh.ulysses)
        config = self.config.model_copy(update={"mesh": of_mesh})
        try:
            if not self._placed(config):
                return False
            places = self.ranks.start(config)
        except NoCapacityError as error:
            if not self.starts:
                raise
            raise LostError(str(error)) from None
        self.starts += 1
        self.seen = self.screen.seen
        self.places = {where.rank: where for where in places}
        told = [asdict(where) for where in places]
        self._record("ranks", places=told, mesh=str(mesh), attempt=self.starts)
        return True

    def _fitting(self) -> Mesh | None:
        """The mesh to start: the wanted one, or after a failure the largest that there is room for.

        None if a person asked to stop while we waited for any.
        """
        capacities = self.ranks.capacities() if self.starts else None
        began = time.monotonic()
        while capacities is not None:
            mesh, waited = self._largest(capacities), time.monotonic() - began
            smaller_will_do = self.config.restart.elastic and waited >= self.config.restart.rejoin_timeout_seconds
            if mesh == self.wanted or (mesh is not None and smaller_will_do):
                return mesh
            if self.asked.times:
                return None
            if waited > EMPTY_SECONDS and not self._fits_in_all():
                raise LostError(f"too few nodes came back within {EMPTY_SECONDS:g} s")
            time.sleep(POLL_SECONDS)
            self.screen.update()
            capacities = self.ranks.capacities()
        return self.wanted

    def _placed(self, config: RunConfig) -> bool:
        """Wait for places that other runs hold; whether we have them, or a person asked to stop."""
        began, last = time.monotonic(), ""
        while (wait := self.ranks.place(config)) is not None:
            if self.asked.times:
                return False
            if str(wait) != last:
                if not last:
                    self._record("queued", needs=wait.needs, free=wait.free)
                last = str(wait)
                self.console.print(last, markup=False, highlight=False, soft_wrap=True)
        if last:
            self._record("placed", seconds=round(time.monotonic() - began, 1))
        return True

    def _why_another(self, mesh: Mesh) -> str:
        if mesh.ranks > self.mesh.ranks:
            return "there is room again"
        return "other runs hold the room" if self._fits_in_all() else "too few nodes are left"

    def _fits_in_all(self) -> bool:
        """Whether the wanted mesh would fit if no other runs were there."""
        capacities = self.ranks.capacities(in_all=True)
        return capacities is None or self._largest(capacities) == self.wanted

    def _largest(self, capacities: Sequence[int]) -> Mesh | None:
        from launcher.preflight.elastic_mesh import mesh_for

        return mesh_for(self.wanted, self.config.model.heads, self.wanted.ranks, capacities)

    def _watch(self) -> AttemptEnd:
        """Wait for the ranks; pass on requests to stop, the second of which does not wait for a checkpoint."""
        longest = patience(self.flops, self.config.data.packs_per_step, self.mesh, self.ranks.kind(), self.config.dtype)
        watchdog, passed_on = Watchdog(self.config.restart, longest), False
        next_beat = next_growth = time.monotonic()
        found_room = 0
        while True:
            ends = self.ranks.poll(POLL_SECONDS)
            self.screen.update()
            if ends is not None:
                return AttemptEnd(ends)
            if self.asked.times > 1:
                return AttemptEnd(cut_short=True)
            if self.asked.times and not passed_on:
                self.screen.console.print("stopping after this step, with a checkpoint (again to stop at once)")
                self.ranks.stop()
                passed_on = True
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + BEAT_SECONDS
                hang = self._look(watchdog, now)
                if hang is not None:
                    return self._tell_hang(hang)
            if self.mesh != self.wanted and now >= next_growth and not passed_on:
                next_growth = now + GROW_SECONDS
                found_room = found_room + 1 if self._can_grow() else 0
                if found_room > 1:
                    self.grows = passed_on = True
                    self.ranks.stop()

    def _look(self, watchdog: Watchdog, now: float) -> Hang | None:
        heartbeats = self.ranks.heartbeats()
        quiet = watchdog.quiet(self.config.restart.heartbeat_timeout_seconds / 2)
        running = [r for r in quiet if heartbeats.get(r, True) is None and stacks.runs(self.ranks.state(r))]
        return watchdog.see(now, heartbeats, running)

    def _can_grow(self) -> bool:
        capacities = self.ranks.capacities()
        mesh = self._largest(capacities) if capacities is not None else None
        return mesh is not None and mesh.ranks > self.mesh.ranks

    def _tell_hang(self, hang: Hang) -> AttemptEnd:
        """Gather the stacks of all ranks, and record who hangs."""
        state = self.ranks.state(hang.rank)
        texts = self.ranks.stacks(sorted(self.places))
        odd = stacks.odd_one_out(texts) if hang.kind == "all" else None
        if odd is not None:
            hang, state = replace(hang, rank=odd, kind="behind"), self.ranks.state(odd)
        at = self.ranks.last(hang.rank)
        if at is not None:
            hang = replace(hang, step=at.step, phase=at.phase)
        where = self.places[hang.rank]
        self._record(
            "hang", rank=hang.rank, host=where.host, pid=where.pid, step=hang.step, phase=hang.phase,
            seconds=round(hang.seconds, 1), kind=hang.kind, state=state,
        )  # fmt: skip
        for rank, text in sorted(texts.items()):
            self._record("stacks", rank=rank, text=text)
        self.screen.update()
        return AttemptEnd(hang=hang, state=state)

    def _explain(self, bad: End | None, verdict: AttemptEnd) -> Failure:
        """Record what went wrong, and on how many ranks."""
        hang, state = verdict.hang, verdict.state
        of_mesh = MeshConfig(replica=self.mesh.replica, ring=self.mesh.ring, ulysses=self.mesh.ulysses)
        cause = cause_of(bad, hang, state, self.config.model_copy(update={"mesh": of_mesh}))
        if hang is not None:
            end = End(hang.rank, "died", hang.step, cause.words, phase=hang.phase)
            how, reason = "hung", cause.words
        else:
            assert bad is not None
            end, how, reason = bad, bad.how, last_line(bad)
        where = self.places.get(end.rank)
        self._record(
            "failure", rank=end.rank, host=where.host if where else "", pid=where.pid if where else 0, how=how,
            cause=cause.kind, step=end.step, phase=end.phase, reason=reason, words=cause.words, remedy=cause.remedy,
            commands=cause.commands,
            trace=end.message if hang is None else "", others=len([e for e in verdict.ends if is_same(e, end)]),
        )  # fmt: skip
        self.screen.update()
        return Failure(end, cause)

    def _tell_others(self, ends: Sequence[End], blamed: End) -> None:
        """A line for each other rank that failed by itself, of something else: those that only lost their peers, or
        say the same, have nothing to add.
        """
        for end in ends:
            if end is not blamed and is_bad(end) and not is_echo(end) and not is_same(end, blamed):
                where = self.places.get(end.rank)
                host = where.host if where else ""
                self._record("also", rank=end.rank, host=host, how=end.how, step=end.step, reason=last_line(end))
        self.screen.update()

    def _ended_well(self, ends: Sequence[End]) -> int | None:
        stopped = any(end.how == "stopped" for end in ends)
        if stopped and self.grows and not self.asked.times:
            return None
        if stopped:
            self._record("stop", step=ends[0].step, checkpoint=self._newest())
            return STOPPED
        if ends[0].step < self.config.steps:
            return None  # the next segment has another mesh
        self._record("done", step=ends[0].step)
        return DONE

    def _after(self, failure: Failure) -> int | None:
        """Whether to try again: None, or the exit code."""
        end, cause = failure.end, failure.cause
        if end.refusal is not None:
            self.refused = True
            rule, value, remedy = end.refusal
            raise InputError(rule, value, filled(remedy, self.config))
        if self.asked.times:
            self._record("stop", step=self.screen.done, reason=f"rank {end.rank} {end.how} before it had saved")
            self.console.print(f"rank {end.rank} {end.how} before it had saved: {last_line(end)}", markup=False)
            return FAILED
        fault = (self.screen.done, last_line(end))
        if cause.lasting:
            return self._give_up(failure, "not restarted, because it would happen again")
        saved = self._newest()
        if self.screen.seen > self.seen:
            self.fits.add(self.mesh)
        if cause.kind == "memory":
            again, self.memory = self._memory_again(saved), saved
            if again:
                return self._give_up(failure, f"not restarted, because it would happen again: {again}")
        if end.how == "failed" and fault == self.before:
            return self._give_up(failure, "not restarted, because it failed twice at the same step in the same way")
        self.before = fault
        self.attempt = 1 if saved not in ("", self.saved) else self.attempt + 1
        self.saved = saved or self.saved
        limit = self.config.restart.max_restarts
        if self.attempt > limit:
            return self._give_up(failure, f"given up after {limit} restarts without a new checkpoint")
        self._record("restart", attempt=self.attempt, limit=limit, mesh=str(self.mesh))
        self.screen.update()
        return None

    def _memory_again(self, saved: str) -> str:
        """Why memory would run out again: no step was done on this mesh, or this is the second time.

        Where steps were done others may have taken the memory, so the run is tried once more.
        """
        if self.mesh not in self.fits:
            return "it ran out of memory before its first step"
        if self.memory == saved:
            return "it ran out of memory twice without a checkpoint in between"
        return ""

    def _give_up(self, failure: Failure, why: str) -> int:
        """Why it ends, and what to type; what it was is told already, its traceback only if nobody foresaw it."""
        self.screen.update()
        cause = failure.cause
        more = shell.join(["longreel", "why", str(self.config.out)])
        typed = [f"          {command}" for command in cause.commands]
        told = [f"  remedy: {cause.remedy}", *typed, f"  more:   {more}"]
        if cause.kind == "exception":
            self.console.print(failure.end.message, highlight=False, markup=False, soft_wrap=True)
        self.console.print(why, style="red", markup=False, highlight=False, soft_wrap=True)
        self.console.print("\n".join(told), markup=False, highlight=False, soft_wrap=True)
        return FAILED

    def _newest(self) -> str:
        """The name of the newest checkpoint; empty if there is none, or the storage cannot be asked."""
        found = self._checkpoint()
        return found.name if found else ""

    def _saved_step(self) -> int:
        """Of the newest checkpoint; 0 if there is none."""
        found = self._checkpoint() if len(self.config.meshes) > 1 else None
        return found.state.step if found else 0

    def _checkpoint(self) -> Checkpoint | None:
        try:
            return newest(open_storage(self.folder.checkpoints, self.config.checkpoint.location), trusting)[0]
        except Exception:  # drivers of stores raise what they like; without an answer it counts as no new checkpoint
            return None

    def _record(self, event: str, **fields: Any) -> None:
        """To events.jsonl; on the screen alone if the disk takes nothing."""
        try:
            self.folder.record(event, **fields)
        except OSError as error:
            told = describe({"event": event, **fields})
            self.console.print(f"{told} [yellow](not recorded: {error.strerror})[/]", highlight=False, soft_wrap=True)
