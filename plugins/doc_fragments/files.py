"""The documented options of the modules that write files."""

from __future__ import annotations


class ModuleDocFragment:
    """The options of `files_spec` in module_utils/written_files.py."""

    DOCUMENTATION = r"""
options:
  files:
    description: The files, folders and links, and the paths that must not exist.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The path.
        type: path
        required: true
      state:
        description: V(file) has O(files[].content). V(link) leads to O(files[].target).
        type: str
        choices: [file, directory, link, absent]
        default: file
      content:
        description: The content of the file.
        type: str
      target:
        description: Where the link leads to; it need not exist.
        type: str
      owner:
        description: The owner; not of a link.
        type: str
        default: root
      group:
        description: The group; not of a link.
        type: str
        default: root
      mode:
        description: The mode; of a file or a folder it is required.
        type: raw
      validate:
        description:
          - Command that must succeed before the file is replaced; C(%s) is the path of the new
            file. Check mode does not run it, because it may not be installed yet.
        type: str
      force:
        description: Whether an existing file is replaced.
        type: bool
        default: true
  drop_ins:
    description:
      - Units, and for each the text of C(wsfleet.conf) in its drop-in folder, or an empty text for
        none. A service also gets C(wsfleet-boot.conf), by which it waits for the network and is
        restarted without limit. They are written after O(files).
    type: dict
    default: {}
"""
