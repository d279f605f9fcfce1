"""For the API pages: docstrings that are made when a class is (`__doc__ = _DOC.format(...)`), read from the class."""

import importlib

import griffe


class MadeDocstrings(griffe.Extension):
    def on_class_members(self, *, node, cls, agent, **_) -> None:
        made = cls.members.get("__doc__")
        if made is not None and cls.docstring is None:
            found = getattr(importlib.import_module(cls.module.path), cls.name).__doc__
            cls.docstring = griffe.Docstring(found, parent=cls)
