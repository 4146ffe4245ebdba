# SPDX-License-Identifier: AGPL-3.0-or-later
package PVE::Storage::DirPlugin;

# See lib/PVE/Storage.pm.

use strict;
use warnings;

use base qw(PVE::Storage::Plugin);

sub get_import_metadata {
    my ($class, $scfg, $volname, $storeid) = @_;
    return { source => $volname, read => scalar($class->path($scfg, $volname, $storeid)) };
}

1;
