"""The command `longreel`. Heavy imports wait until a command needs them."""
