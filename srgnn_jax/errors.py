"""The one exception that is meant for the user's eyes."""


class UserError(Exception):
    """Something the user can mend: bad input, a missing file, a config that is wrong.

    The message is one clear line: what was wrong, where (file, line, value), and what
    to do about it. `srgnn_jax.main` prints it without a traceback and exits with 1.
    """
