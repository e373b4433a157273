"""Readers of uploaded datasets: IDX, NPZ, and ZIP files of images.

`detect.open_upload` finds the format from the first bytes and returns a `source.Source`, which was
checked by headers alone and reads its images batch by batch. A fault raises `UploadRejectedError`,
which names the array or the member and says what would work. No member is unpacked to disk under
its own name, no pickled object is loaded, and no size is used before it was compared with a limit.
"""
