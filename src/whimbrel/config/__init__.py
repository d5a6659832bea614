"""Settings: defaults < profile < `whimbrel.yaml` < environment (`WHIMBREL_*`) < flags.

`load_settings` is the only way in. Each value remembers where it came from (`Settings.sources`), an unknown key is
refused and the nearest named, and no message, repr or listing shows a secret. Loading takes milliseconds: it is on the
start path of every command.
"""

from whimbrel.config.load import PROFILES, load_settings
from whimbrel.config.settings import Settings
from whimbrel.config.show import Setting, explain, reference_markdown
from whimbrel.config.values import mask_url

__all__ = ["PROFILES", "Setting", "Settings", "explain", "load_settings", "mask_url", "reference_markdown"]
