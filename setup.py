"""Make the wheel's description; all other metadata are in pyproject.toml.

A description stands alone, so that links and pictures by relative paths would lead nowhere: links become their text, and
pictures are left out. The project has no public address yet to which they could be made absolute.
"""

import re
from pathlib import Path

from setuptools import setup

#: A path in this repository, as the target of a link.
PATH = r"\((?!https?:)[^()\s]+\)"
text = Path(__file__).with_name("README.md").read_text("utf-8")
text = re.sub(rf"!\[[^\]]*\]{PATH}\n*", "", text)
text = re.sub(rf"\s\(\[docs\]{PATH}\)", "", text)
text = re.sub(rf"\[([^\]]+)\]{PATH}", r"\1", text)

setup(long_description=text, long_description_content_type="text/markdown")
