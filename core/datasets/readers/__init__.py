"""Readers of uploaded datasets: IDX, NPZ, and ZIP files of images.

`detect.open_upload` detects the format from the first bytes and returns a `base.Source`. Only
headers are read at that point; images are read later, batch by batch. An invalid file raises
`UploadRejectedError`, which names the array or member and says what would work. No member is
unpacked to disk under its own name, no pickled object is loaded, and every size is compared with a
limit before it is used.
"""
