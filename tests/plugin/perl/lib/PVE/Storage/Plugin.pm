# SPDX-License-Identifier: AGPL-3.0-or-later
package PVE::Storage::Plugin;

# See lib/PVE/Storage.pm. The base class of storage plugins, as far as ours go back to it.

use strict;
use warnings;

our @SHARED_STORAGE = ('nfs');
our @called; # [method, arguments] of what went back to the base class

my $directories = {
    images => 'images', rootdir => 'private', iso => 'template/iso', vztmpl => 'template/cache', backup => 'dump',
    snippets => 'snippets', import => 'import',
};

sub check_config {
    my ($class, $id, $config, $create) = @_;
    my $options = $class->options();
    for my $name (keys %$config) {
        die "unexpected property '$name'\n" if !$options->{$name};
        die "can't change value of fixed parameter '$name'\n" if !$create && $options->{$name}->{fixed};
    }
    if ($create) {
        for my $name (keys %$options) {
            next if $options->{$name}->{optional};
            die "missing value for required option '$name'\n" if !defined($config->{$name});
        }
    }
    return { type => $class->type(), %$config };
}

sub parse_volume_id {
    my ($volid) = @_;
    $volid =~ m/\A([a-z][a-z0-9._-]*[a-z0-9]):(.+)\z/i or die "unable to parse volume ID '$volid'\n";
    return ($1, $2);
}

# (type, name, vmid, base name, base vmid, is base, format)
sub parse_volname {
    my ($class, $volname) = @_;
    my @no = (undef, undef, undef);
    return ('images', $2, $1, @no, 'raw') if $volname =~ m{\A(\d+)/(vm-\d+-\S+\.raw)\z};
    return ('iso', $1, undef, @no, 'raw') if $volname =~ m{\Aiso/([^/]+\.(?:iso|img))\z}i;
    return ('vztmpl', $1, undef, @no, 'raw') if $volname =~ m{\Avztmpl/([^/]+\.tar\.(?:gz|xz|zst))\z};
    return ('backup', $1, $2, @no, 'raw')
        if $volname =~ m{\Abackup/((?:vzdump-\w+-(\d+)-)?[^/]+\.(?:tgz|(?:tar|vma)(?:\.(?:gz|lzo|zst))?))\z};
    return ('snippets', $1, undef, @no, 'raw') if $volname =~ m{\Asnippets/([^/]+)\z};
    return ('import', $1, undef, @no, "ova+$2") if $volname =~ m{\Aimport/([\w.+-]+\.ova/[\w.+-]+\.(vmdk|raw))\z};
    return ('import', $1, undef, @no, $2) if $volname =~ m{\Aimport/([\w.+-]+\.(ova|ovf|qcow2|raw|vmdk))\z};
    die "unable to parse directory volume name '$volname'\n";
}

sub get_subdir {
    my ($class, $scfg, $vtype) = @_;
    die "storage definition has no path\n" if !$scfg->{path};
    return "$scfg->{path}/" . ($directories->{$vtype} // die "unknown vtype '$vtype'\n");
}

# Marks as Proxmox VE does: group by guest, leave alone what has no standard name, note what is protected.
sub prune_backups {
    my ($class, $scfg, $storeid, $keep, $vmid, $type, $dryrun, $logfunc) = @_;
    push @called, ['prune_backups', $dryrun];
    my (@list, %groups);
    for my $backup (@{ $class->list_volumes($storeid, $scfg, $vmid, ['backup']) }) {
        my $info = eval { PVE::Storage::archive_info($backup->{volid}) } // {};
        next if defined($type) && $type ne ($info->{type} // 'unknown');
        my $entry = { volid => $backup->{volid}, ctime => $backup->{ctime}, type => $info->{type} // 'unknown' };
        if ($info->{is_std_name}) {
            $entry->@{qw(ctime vmid)} = $info->@{qw(ctime vmid)};
            push @{ $groups{"$info->{type}/$info->{vmid}"} }, $entry;
        } else {
            $entry->{mark} = 'renamed';
        }
        $entry->{mark} = 'protected' if $backup->{protected};
        push @list, $entry;
    }
    PVE::Storage::prune_mark_backup_group($_, $keep) for values %groups;
    die "the base class would unlink local files\n" if !$dryrun;
    return \@list;
}

1;
