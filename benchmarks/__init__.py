"""Speed and memory, side by side with a peer or a limit in one run; results under results/ name the machine."""
