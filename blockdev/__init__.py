"""`s3block`: a bucket as a disk.

Read in this order: `target` (what a front door may ask), `engine.front` (acknowledging writes),
`engine.destager` (journal to bucket), `engine.recovery`, then `scsi` and `iscsi` (pure) and `iscsi.portal`.

    cli, daemon  ->  iscsi.portal  ->  iscsi | scsi (pure; know only `target`)
                 ->  engine  ->  journal | segments | extents  ->  target, units, errors
"""
