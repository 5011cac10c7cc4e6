"""URLs to bytes: local paths and `s3://` the same, all or nothing; files fetched; one writer at a time.

May import: config and what is below it.
"""

from gptpipe.storage.faults import (
    explained,
)
from gptpipe.storage.home import (
    cache_home,
    home,
    jobs_home,
    reproductions_home,
    scratch_home,
)
from gptpipe.storage.listing import (
    Entry,
    entry_of,
)
from gptpipe.storage.objects import (
    check_writable,
    copy,
    create_exclusive,
    describe,
    exists,
    lacks_bucket,
    list_files,
    list_folders,
    list_names,
    move_file,
    open_read,
    open_write,
    put_file,
    read_bytes,
    read_json,
    remove,
    remove_if_empty,
    remove_tree,
    write_bytes,
    write_json,
)
from gptpipe.storage.remote import (
    Upload,
    abort_upload,
    filesystem,
    unfinished_uploads,
)
from gptpipe.storage.results import (
    is_as_written,
    read_result,
    with_digest,
    write_result,
)
from gptpipe.storage.temporary import (
    atomic_file,
    new_file,
    passing_folder,
    scratch_folder,
    sweep_temporaries,
)
from gptpipe.storage.urls import (
    as_uri,
    check_whole,
    is_local,
    is_local_file,
    is_local_folder,
    join,
    local_path,
    normalize,
    parent,
)

__all__ = [
    "Entry",
    "Upload",
    "abort_upload",
    "as_uri",
    "atomic_file",
    "cache_home",
    "check_whole",
    "check_writable",
    "copy",
    "create_exclusive",
    "describe",
    "entry_of",
    "exists",
    "explained",
    "filesystem",
    "home",
    "is_as_written",
    "is_local",
    "is_local_file",
    "is_local_folder",
    "jobs_home",
    "join",
    "lacks_bucket",
    "list_files",
    "list_folders",
    "list_names",
    "local_path",
    "move_file",
    "new_file",
    "normalize",
    "open_read",
    "open_write",
    "parent",
    "passing_folder",
    "put_file",
    "read_bytes",
    "read_json",
    "read_result",
    "remove",
    "remove_if_empty",
    "remove_tree",
    "reproductions_home",
    "scratch_folder",
    "scratch_home",
    "sweep_temporaries",
    "unfinished_uploads",
    "with_digest",
    "write_bytes",
    "write_json",
    "write_result",
]
