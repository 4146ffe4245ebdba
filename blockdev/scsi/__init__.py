"""SCSI, pure: a CDB becomes an `Operation` on a block target or a finished `Response`.

Imports no socket, asyncio, LMDB or S3. `operation` holds the values that cross the boundary, `commands` the opcode
table, `device` a logical unit's state, `perform` carries operations out on a `BlockTarget`, and both front doors
use the same four.
"""
