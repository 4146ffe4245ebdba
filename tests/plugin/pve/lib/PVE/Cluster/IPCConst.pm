# SPDX-License-Identifier: AGPL-3.0-or-later
package PVE::Cluster::IPCConst;

# In place of the module that upstream generates from a C header when it is built: reads that header of the checkout.

use strict;
use warnings;

use base qw(Exporter);

our (@EXPORT, %numbers);

BEGIN {
    my $path = "$PveCheckout::SOURCE/pve-cluster/src/pmxcfs/cfs-ipc-ops.h";
    open(my $header, '<', $path) or die "$path: $!\n";
    while (my $line = <$header>) {
        $numbers{$1} = 0 + $2 if $line =~ m/\A#define\s+(CFS_IPC_[A-Z_]+)\s+([0-9]+)/;
    }
    @EXPORT = keys %numbers;
}

use constant \%numbers;

sub name {
    my ($number) = @_;
    return (grep { $numbers{$_} == $number } keys %numbers)[0] // "message $number";
}

1;
