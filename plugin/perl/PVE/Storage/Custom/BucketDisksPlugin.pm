# SPDX-License-Identifier: AGPL-3.0-or-later
package PVE::Storage::Custom::BucketDisksPlugin;

# Storage type `bucketdisks`: disks of machines and containers on `s3block` volumes in a bucket.
#
# The service does the work (plugin/disks): this module says it in PVE's words. QEMU reaches a disk at an address that
# never changes, iscsi://127.0.0.1:PORT/NAME/0, behind which the node's gateway finds whoever serves it; containers get
# a block device of the kernel's initiator (open-iscsi).
#
# One rule: names say everything that must be known without asking: path() opens no socket.

use strict;
use warnings;

use PVE::JSONSchema;
use PVE::Tools;

use PVE::Bucketworks::Client;
use PVE::Bucketworks::Node;
use PVE::Bucketworks::Properties;

use base qw(PVE::Bucketworks::Configuration PVE::Storage::Plugin);

use constant {
    API_OLDEST => 11, # PVE 8.4
    API_NEWEST => 15, # PVE 9.1
    GATEWAY_PORT => 3265, # plugin/properties.py
    IN_LOCK_SECONDS => 50, # PVE's cluster lock ends after 60 s
    ACTIVATE_SECONDS => 90,
};

my $TYPE = 'bucketdisks';
my $TARGET = 'iqn.2025-01.internal.bucketworks'; # plugin/disks/names.py

# --- what the loader asks ---------------------------------------------------------------------------------------------

sub api {
    my ($version) = (PVE::Storage::APIVER());

    return $version if $version >= API_OLDEST && $version <= API_NEWEST;
    # Newer than what was tested: say so while that is taken. Otherwise the loader tells why it refuses.
    return API_NEWEST;
}

sub type { return $TYPE }

sub plugindata {
    return {
        content => [{ images => 1, rootdir => 1, none => 1 }, { images => 1 }],
        format => [{ raw => 1 }, 'raw'],
        'sensitive-properties' => { map { $_ => 1 } @{ PVE::Bucketworks::Properties::secrets($TYPE) } },
    };
}

# What both types have the files type defines. Where that one could not be loaded we do: an option that nobody defines
# takes down everything that loads PVE::Storage.
sub properties {
    my $own = PVE::Bucketworks::Properties::defined_by($TYPE);
    my $files = eval { PVE::Storage::Plugin->lookup('bucketfiles') };
    return $own if $files;

    my $theirs = PVE::Bucketworks::Properties::defined_by('bucketfiles');
    my $taken = PVE::Bucketworks::Properties::options($TYPE);
    return { %$own, map { $_ => $theirs->{$_} } grep { $theirs->{$_} } keys %$taken };
}

sub options {
    return {
        nodes => { optional => 1 },
        disable => { optional => 1 },
        content => { optional => 1 },
        bwlimit => { optional => 1 },
        %{ PVE::Bucketworks::Properties::options($TYPE) },
    };
}

push @PVE::Storage::Plugin::SHARED_STORAGE, $TYPE if !grep { $_ eq $TYPE } @PVE::Storage::Plugin::SHARED_STORAGE;

# --- state ------------------------------------------------------------------------------------------------------------

sub check_connection { return 1 }
sub activate_storage { return 1 }
sub deactivate_storage { return 1 }

# (total, available, used, active) as the service last saw them. All 0 where it does not answer.
sub status {
    my ($class, $storeid, $scfg, $cache) = @_;

    my @numbers = eval {
        my $seconds = $cache->{bucketworks_silent} ? 0.3 : 1.8;
        my ($result, $error) = PVE::Bucketworks::Client::ask($storeid, 'status', {}, seconds => $seconds);
        $cache->{bucketworks_silent} = 1 if $error && $error->{code} eq 'deadline';
        return if $error || ref($result) ne 'HASH';
        return map { _number($result->{$_}) } qw(total avail used active);
    };
    return @numbers == 4 ? @numbers : (0, 0, 0, 0);
}

sub get_identity {
    my ($class, $scfg, $storeid) = @_;
    return PVE::Bucketworks::Client::call($storeid, 'identity', {}, seconds => 5)->{identity};
}

# --- names and places -------------------------------------------------------------------------------------------------

# (type, name, vmid, template, vmid of it, is a template, format). Names come back untainted.
sub parse_volname {
    my ($class, $volname) = @_;

    if ($volname =~ m{\A(?:(base-([1-9][0-9]*)-[\w.-]+)/)?((vm|base)-([1-9][0-9]*)-[\w.-]+)\z}a) {
        return ('images', $3, $5, $1, $2, $4 eq 'base', 'raw');
    }
    die "unable to parse disk name '$volname' (vm-VMID-disk-N, base-VMID-disk-N or base-.../vm-VMID-disk-N)\n";
}

# What iSCSI's names cannot have is written as its bytes (plugin/disks/names.py, `target_name`).
sub _coded {
    my ($text) = @_;
    $text =~ s/([^a-z0-9.-])/sprintf(':%02x', ord($1))/ge;
    return $text;
}

sub _target {
    my ($storeid, $name, $snapname) = @_;
    return join(':', $TARGET, map { _coded($_) } $storeid, $name, defined($snapname) ? $snapname : ());
}

sub path {
    my ($class, $scfg, $volname, $storeid, $snapname) = @_;

    my ($vtype, $name, $vmid) = $class->parse_volname($volname);
    my $port = $scfg->{'bw-gateway-port'} // GATEWAY_PORT;
    my $host = PVE::Bucketworks::Node::setting('gateway_listen');
    my $path = "iscsi://$host:$port/" . _target($storeid, $name, $snapname) . '/0';
    return wantarray ? ($path, $vmid, $vtype) : $path;
}

sub filesystem_path {
    my ($class, $scfg, $volname, $snapname) = @_;
    die "disk '$volname' is no file: its path has the storage's name in it\n";
}

sub get_subdir { die "storage type $TYPE holds disks, not files (bucketfiles does)\n" }

# --- making and removing: within the cluster's lock -------------------------------------------------------------------

sub alloc_image {
    my ($class, $storeid, $scfg, $vmid, $fmt, $name, $size) = @_;

    die "unsupported format '$fmt': disks in a bucket are raw\n" if $fmt ne 'raw';
    my $args = { vmid => int($vmid), size_bytes => int($size * 1024), format => 'raw' };
    $args->{name} = $name if defined($name) && $name ne '';
    return _told_name(_change($storeid, 'disk_alloc', $args));
}

# The name is gone on return; of a large disk the service goes on to remove data.
sub free_image {
    my ($class, $storeid, $scfg, $volname, $is_base, $format) = @_;

    _change($storeid, 'disk_free', { volname => $volname });
    return undef; ## no critic (the contract: no worker)
}

sub create_base {
    my ($class, $storeid, $scfg, $volname) = @_;
    return _told_name(_change($storeid, 'disk_base', { volname => $volname }));
}

sub clone_image {
    my ($class, $scfg, $storeid, $volname, $vmid, $snap) = @_;

    my $args = { volname => $volname, vmid => int($vmid) };
    $args->{snap} = $snap if defined($snap) && $snap ne '';
    return _told_name(_change($storeid, 'disk_clone', $args));
}

sub rename_volume {
    my ($class, $scfg, $storeid, $source_volname, $target_vmid, $target_volname) = @_;

    my $args = { volname => $source_volname, vmid => int($target_vmid) };
    $args->{name} = ($class->parse_volname($target_volname))[1] if $target_volname;
    return "$storeid:" . _told_name(_change($storeid, 'disk_rename', $args));
}

sub _change {
    my ($storeid, $method, $args) = @_;
    return PVE::Bucketworks::Client::call($storeid, $method, $args, seconds => IN_LOCK_SECONDS);
}

sub _told_name {
    my ($result) = @_;
    my $name = ref($result) eq 'HASH' ? $result->{volname} // '' : '';
    return $1 if $name =~ m{\A([\w.-]+(?:/[\w.-]+)?)\z}a;
    die "the Bucketworks service told no name of a disk\n";
}

# --- telling ----------------------------------------------------------------------------------------------------------

sub list_images {
    my ($class, $storeid, $scfg, $vmid, $vollist, $cache) = @_;

    my $wanted = $vollist ? { map { $_ => 1 } @$vollist } : undef;
    my $args = {};
    $args->{vmid} = int($vmid) if defined($vmid) && !$wanted;
    my $result = PVE::Bucketworks::Client::call($storeid, 'disk_list', $args, seconds => 10);

    my $images = [];
    for my $told (@{ $result->{volumes} }) {
        my @parsed = eval { $class->parse_volname($told->{volname}) } or next;
        my $volid = "$storeid:$told->{volname}";
        next if $wanted && !$wanted->{$volid};
        my $image = { volid => $volid, format => 'raw', size => _number($told->{size}), vmid => $parsed[2] };
        $image->{used} = _number($told->{used}) if defined($told->{used});
        $image->{ctime} = _number($told->{ctime}) if $told->{ctime};
        $image->{parent} = $told->{parent} if defined($told->{parent}) && $told->{parent} ne '';
        push @$images, $image;
    }
    return $images;
}

sub volume_size_info {
    my ($class, $scfg, $storeid, $volname, $timeout) = @_;

    my $result = PVE::Bucketworks::Client::call(
        $storeid, 'disk_size', { volname => $volname }, seconds => $timeout && $timeout > 10 ? $timeout : 10,
    );
    my $size = _number($result->{size});
    my $parent = $result->{parent} || undef;
    return wantarray ? ($size, 'raw', _number($result->{used}), $parent) : $size;
}

# --- size and states --------------------------------------------------------------------------------------------------

sub volume_resize {
    my ($class, $scfg, $storeid, $volname, $size, $running, $snapname) = @_;

    die "a snapshot cannot be resized\n" if $snapname;
    _change($storeid, 'disk_resize', { volname => $volname, size_bytes => int($size) });
    return 1;
}

sub volume_snapshot {
    my ($class, $scfg, $storeid, $volname, $snap) = @_;
    _change($storeid, 'disk_snapshot', { volname => $volname, snap => $snap });
    return;
}

sub volume_snapshot_delete {
    my ($class, $scfg, $storeid, $volname, $snap, $running) = @_;
    _change($storeid, 'disk_snapshot_delete', { volname => $volname, snap => $snap });
    return;
}

sub volume_snapshot_rollback {
    my ($class, $scfg, $storeid, $volname, $snap) = @_;
    _change($storeid, 'disk_rollback', { volname => $volname, snap => $snap });
    return;
}

sub volume_rollback_is_possible { return 1 } # to any snapshot: the later ones stay

sub volume_snapshot_info {
    my ($class, $scfg, $storeid, $volname) = @_;

    my $result = PVE::Bucketworks::Client::call($storeid, 'disk_snapshots', { volname => $volname }, seconds => 10);
    my @kept = @{ $result->{snapshots} };
    return { map { $_->{name} => { id => $_->{id}, timestamp => _number($_->{timestamp}) } } @kept };
}

sub rename_snapshot { die "snapshots of disks in a bucket cannot be renamed\n" }

# A container's file system is this node's kernel's: what its journal holds must be in it when the snapshot is mounted,
# which is done without the journal being replayed.
sub volume_snapshot_needs_fsfreeze { return 1 }
sub volume_qemu_snapshot_method { return 'storage' }
sub storage_can_replicate { return 0 }

sub volume_has_feature {
    my ($class, $scfg, $feature, $storeid, $volname, $snapname, $running, $opts) = @_;

    my $features = {
        snapshot => { current => 1, snap => 1 },
        clone => { base => 1, snap => 1 },
        template => { current => 1 },
        copy => { base => 1, current => 1, snap => 1 },
        sparseinit => { base => 1, current => 1 },
        rename => { current => 1 },
    };
    my $is_base = ($class->parse_volname($volname))[5];
    my $key = $snapname ? 'snap' : $is_base ? 'base' : 'current';
    return $features->{$feature}->{$key} ? 1 : undef;
}

# --- serving ----------------------------------------------------------------------------------------------------------

sub activate_volume {
    my ($class, $storeid, $scfg, $volname, $snapname, $cache, $hints) = @_;
    _activate($storeid, $volname, $snapname, 0);
    return 1;
}

# On the source of a migration too: what the node has goes to the bucket, then the other node serves the disk.
sub deactivate_volume {
    my ($class, $storeid, $scfg, $volname, $snapname, $cache) = @_;

    my $args = { volname => $volname };
    $args->{snap} = $snapname if defined($snapname) && $snapname ne '';
    PVE::Bucketworks::Client::call($storeid, 'disk_deactivate', $args, seconds => ACTIVATE_SECONDS);
    return 1;
}

# A block device of this node's kernel: containers, TPM state, streams.
sub map_volume {
    my ($class, $storeid, $scfg, $volname, $snapname, $hints) = @_;
    return PVE::Bucketworks::Node::absolute_path(_activate($storeid, $volname, $snapname, 1)->{path});
}

# The kernel keeps no pages of a disk that another node may serve next.
sub unmap_volume {
    my ($class, $storeid, $scfg, $volname, $snapname) = @_;
    return $class->deactivate_volume($storeid, $scfg, $volname, $snapname);
}

sub _activate {
    my ($storeid, $volname, $snapname, $kernel) = @_;

    my $args = { volname => $volname, kernel => $kernel };
    $args->{snap} = $snapname if defined($snapname) && $snapname ne '';
    return PVE::Bucketworks::Client::call($storeid, 'disk_activate', $args, seconds => ACTIVATE_SECONDS);
}

# --- streams ----------------------------------------------------------------------------------------------------------

sub volume_export_formats {
    my ($class, $scfg, $storeid, $volname, $snapshot, $base_snapshot, $with_snapshots) = @_;
    return $with_snapshots || defined($base_snapshot) ? () : ('raw+size');
}

sub volume_import_formats {
    my ($class, $scfg, $storeid, $volname, $snapshot, $base_snapshot, $with_snapshots) = @_;
    return $with_snapshots || defined($base_snapshot) ? () : ('raw+size');
}

sub volume_export {
    my ($class, $scfg, $storeid, $fh, $volname, $format, $snapshot, $base_snapshot, $with_snapshots) = @_;

    die "volume export format $format not available for $class\n"
        if $format ne 'raw+size' || $with_snapshots || defined($base_snapshot);
    my $device = $class->map_volume($storeid, $scfg, $volname, $snapshot);
    eval {
        my $size = _device_size($device);
        PVE::Storage::Plugin::write_common_header($fh, $size);
        PVE::Tools::run_command(
            ['dd', "if=$device", 'bs=64k', 'iflag=fullblock', 'status=none'], output => '>&' . fileno($fh),
        );
    };
    my $error = $@;
    eval { $class->unmap_volume($storeid, $scfg, $volname, $snapshot) };
    warn $@ if $@;
    die $error if $error;
    return;
}

sub volume_import {
    my ($class, $scfg, $storeid, $fh, $volname, $format, $snapshot, $base_snapshot, $with_snapshots, $allow_rename) =
        @_;

    die "volume import format $format not available for $class\n"
        if $format ne 'raw+size' || $with_snapshots || defined($base_snapshot);
    my (undef, $name, $vmid) = $class->parse_volname($volname);
    my ($size) = PVE::Storage::Plugin::read_common_header($fh);
    my $kib = int(($size + 1023) / 1024);

    my $made = eval { $class->alloc_image($storeid, $scfg, $vmid, 'raw', $name, $kib) };
    if (my $error = $@) {
        die $error if !$allow_rename || $error !~ m/there is a disk/;
        warn "disk '$volname' already exists - importing with a different name\n";
        $made = $class->alloc_image($storeid, $scfg, $vmid, 'raw', undef, $kib);
    }
    eval {
        my $device = $class->map_volume($storeid, $scfg, $made);
        PVE::Tools::run_command(
            ['dd', "of=$device", 'conv=sparse,fsync', 'bs=64k', 'iflag=fullblock', 'status=none'],
            input => '<&' . fileno($fh),
        );
        $class->unmap_volume($storeid, $scfg, $made);
    };
    if (my $error = $@) {
        eval { $class->free_image($storeid, $scfg, $made, 0, 'raw') };
        warn $@ if $@;
        die $error;
    }
    return "$storeid:$made";
}

sub _device_size {
    my ($device) = @_;
    my $size;
    my $read = sub { $size = $1 if $_[0] =~ m/\A(\d+)\z/ };
    PVE::Tools::run_command(['blockdev', '--getsize64', $device], outfunc => $read);
    return $size // die "cannot tell the size of $device\n";
}

sub _number {
    my ($value) = @_;
    return defined($value) && !ref($value) && $value =~ m/\A([0-9]{1,19})(?:\.[0-9]+)?\z/ ? $1 + 0 : 0;
}

1;
