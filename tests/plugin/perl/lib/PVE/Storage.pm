# SPDX-License-Identifier: AGPL-3.0-or-later
package PVE::Storage;

# Our own small stand-in for Proxmox VE's module, for tests where there is no checkout of it: what the plugins call, with
# the contract that they count on. tests/plugin/pve runs the same plugins on the real code.

use strict;
use warnings;

use Time::Local qw(timelocal);

use PVE::Storage::Plugin;
use PVE::Storage::DirPlugin;

our ($apiver, $apiage) = (15, 6);
our $config = { ids => {} };

sub APIVER { return $apiver }
sub APIAGE { return $apiage }
sub config { return $config }

sub archive_info {
    my ($archive) = @_;
    my ($name) = ($archive =~ m{([^/]+)\z});
    $name =~ m/\A(?:.*:)?vzdump-(lxc|openvz|qemu)-/ or die "couldn't determine archive info from '$archive'\n";
    my $info = { type => $1, is_std_name => 0 };
    if ($name =~ m/-([1-9][0-9]{2,8})-(\d{4})_(\d\d)_(\d\d)-(\d\d)_(\d\d)_(\d\d)\.(?:tgz|(?:tar|vma)(?:\.\w+)?)\z/) {
        $info->{vmid} = int($1);
        $info->{ctime} = timelocal($7, $6, $5, $4, $3 - 1, $2);
        $info->{is_std_name} = 1;
    }
    return $info;
}

# Only keep-last and keep-all. An entry that has a mark keeps it, and does not count.
sub prune_mark_backup_group {
    my ($group, $keep) = @_;
    my $left = $keep->{'keep-last'};
    for my $entry (sort { $b->{ctime} <=> $a->{ctime} } @$group) {
        next if $entry->{mark};
        $entry->{mark} = !defined($left) || $left-- > 0 ? 'keep' : 'remove';
    }
    return;
}

1;
