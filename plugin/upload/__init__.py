"""Sending objects: a stream of unknown length or a file becomes an object that was verified, or none.

uploader    Uploader: everything of one storage; begin here
stream      StreamingUpload: sequential bytes in, parts out, `finish` verifies
files       a file of known size: resumed after a crash
multipart   one multipart upload: parts, completion, verification, abort
plan        pure: how large each part is
spool       bounded room, in memory or on disk, for bytes that S3 does not have yet
journal     what a killed process leaves behind, and how the next one finds it
sealing     pure: a stream sealed on its way (docs/formats/sealed-object.md, version 2)
"""
