# SPDX-License-Identifier: AGPL-3.0-or-later
package PVE::Tools;

# See lib/PVE/Storage.pm.

use strict;
use warnings;

# One step: a temporary file of that mode, and a rename.
sub file_set_contents {
    my ($path, $data, $mode) = @_;
    my $new = "$path.tmp.$$";
    sysopen(my $file, $new, 0301, $mode // 0644) or die "unable to open file '$new' - $!\n"; # O_WRONLY O_CREAT O_EXCL
    print {$file} $data or die "unable to write '$new' - $!\n";
    close($file) or die "closing file '$new' failed - $!\n";
    rename($new, $path) or die "close (rename) atomic file '$path' failed: $!\n";
    return;
}

1;
