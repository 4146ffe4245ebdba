"""Every system of the run, by its name in the report, in the order of its tables."""

from bench.peers import local_file, nbdkit, ours, s3backer
from bench.peers.systems import Known, Place, System


def _ours(place: Place) -> System:
    return ours.S3Block(place)


def _ours_s3(place: Place) -> System:
    return ours.S3Block(place, ours.NAME_S3, {"flush": "s3"})


def _tuned(place: Place) -> System:
    return s3backer.S3Backer(place, s3backer.TUNED, s3backer.tuned(place))


def _tuned_file(place: Place) -> System:
    return s3backer.S3Backer(place, s3backer.TUNED_FILE, s3backer.tuned(place), front=False)


def _packaged(place: Place) -> System:
    return s3backer.S3Backer(place, s3backer.PACKAGED, s3backer.packaged(place))


def _sync(place: Place) -> System:
    return s3backer.S3Backer(place, s3backer.SYNC, s3backer.sync(place))


def _nbdkit(place: Place) -> System:
    return nbdkit.Nbdkit(place, nbdkit.NAME, cached=False)


def _nbdkit_cached(place: Place) -> System:
    return nbdkit.Nbdkit(place, nbdkit.NAME_CACHED, cached=True)


def _local(place: Place) -> System:
    return local_file.LocalFile(place)


SYSTEMS = (
    Known(ours.NAME, _ours, ours.missing, ours.version),
    Known(ours.NAME_S3, _ours_s3, ours.missing, ours.version),
    Known(s3backer.TUNED, _tuned, s3backer.missing_with_tgt, s3backer.version),
    Known(s3backer.TUNED_FILE, _tuned_file, s3backer.missing, s3backer.version),
    Known(s3backer.PACKAGED, _packaged, s3backer.missing_with_tgt, s3backer.version),
    Known(s3backer.SYNC, _sync, s3backer.missing_with_tgt, s3backer.version),
    Known(nbdkit.NAME, _nbdkit, nbdkit.missing, nbdkit.version),
    Known(nbdkit.NAME_CACHED, _nbdkit_cached, nbdkit.missing, nbdkit.version),
    Known(local_file.NAME, _local, local_file.missing, local_file.version),
)
NAMES = tuple(known.name for known in SYSTEMS)


def known(name: str) -> Known:
    """KeyError for a name that is not in the table."""
    return {one.name: one for one in SYSTEMS}[name]
