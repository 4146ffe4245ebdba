"""Backups as they lie in a bucket: read in part, by ranges, with an index that was made while they were uploaded.

    errors.py       BadArchive, NoIndex, NotInArchive
    streams.py      ranges of an object: the port that everything here reads through
    vma.py          VMA: Proxmox's archive of a virtual machine, parsed as it streams
    tar.py          tar (ustar, GNU, PAX) as it streams: members, and the content of one
    zstd_frames.py  where frames and blocks of zstd begin, without decompressing; the seekable format
    lzo.py          lzop files and LZO1X
    compression.py  which compression, and decoders of bounded output
    index.py        the index object (docs/formats/archive-index.md)
    indexer.py      bytes of an upload in, an index object out
    tap.py          an indexer on a thread of its own, which never fails or delays the upload
    view.py         guest configuration, ls, extract, disks and check of an archive, by ranges

One rule: nothing here trusts a size that stands in an archive: memory is bounded by constants of this package.
"""
