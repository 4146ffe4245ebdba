# SPDX-License-Identifier: AGPL-3.0-or-later
package PVE::Storage::Custom::BucketFilesPlugin;

# Storage type `bucketfiles`: backups, ISO images, container templates, snippets and imports as plain objects in a
# bucket.
#
# The service (`pve-s3 serve`) does the work; this module says it in PVE's words. What PVE writes, and backups that it
# reads, go through the mount at the storage's path (`pve-s3 mount`); iso, vztmpl and snippets are read from whole local
# copies, which serve without the service and without the store.
#
# One rule: a store or a service that hangs never hangs PVE. What pvestatd calls (check_connection, activate_storage,
# status) touches no file below the mount and waits less than 2 s for the service; status() never dies.

use strict;
use warnings;

use Errno ();
use Fcntl qw(O_CREAT O_EXCL O_WRONLY);

use PVE::JSONSchema;
use PVE::Tools;

use PVE::Bucketworks::Client;
use PVE::Bucketworks::Node;
use PVE::Bucketworks::Properties;

use base qw(PVE::Bucketworks::Configuration PVE::Storage::Plugin);

use constant {
    API_OLDEST => 11, # PVE 8.4
    API_NEWEST => 15, # PVE 9.1
    SILENCE_SECONDS => 30, # a long call is given up without any line for so long
};

my $TYPE = 'bucketfiles';

# Set while PVE writes or streams a file that would otherwise be read from its local copy.
our $through_mount = 0;

# --- what the loader asks ---------------------------------------------------------------------------------------------

sub api {
    my ($version, $age) = (PVE::Storage::APIVER(), PVE::Storage::APIAGE());

    return $version if $version >= API_OLDEST && $version <= API_NEWEST;
    # Newer than what was tested: say so while that is taken. Otherwise the loader tells why it refuses.
    return API_NEWEST;
}

sub type { return $TYPE }

sub plugindata {
    return {
        content => [
            { backup => 1, iso => 1, vztmpl => 1, snippets => 1, import => 1, none => 1 },
            { backup => 1, iso => 1, vztmpl => 1 },
        ],
        'sensitive-properties' => { map { $_ => 1 } @{ PVE::Bucketworks::Properties::secrets($TYPE) } },
    };
}

sub properties { return PVE::Bucketworks::Properties::defined_by($TYPE) }

sub options {
    return {
        path => { fixed => 1 },
        nodes => { optional => 1 },
        disable => { optional => 1 },
        content => { optional => 1 },
        'prune-backups' => { optional => 1 },
        'max-protected-backups' => { optional => 1 },
        bwlimit => { optional => 1 },
        %{ PVE::Bucketworks::Properties::options($TYPE) },
    };
}

push @PVE::Storage::Plugin::SHARED_STORAGE, $TYPE if !grep { $_ eq $TYPE } @PVE::Storage::Plugin::SHARED_STORAGE;

sub check_config {
    my ($class, $storeid, $config, $create, $skip_schema_check) = @_;

    $config->{path} //= "/mnt/pve/$storeid" if $create;
    my $checked = $class->SUPER::check_config($storeid, $config, $create, $skip_schema_check);
    die "illegal path for storage '$storeid': letters, digits and / - _ . @ are possible\n"
        if $create && ($checked->{path} !~ m{\A/[-/a-zA-Z0-9_.@]+\z} || $checked->{path} =~ m{/\.\.?(?:/|\z)});
    return $checked;
}

# The hooks are PVE::Bucketworks::Configuration's.

# --- state ------------------------------------------------------------------------------------------------------------

# True whatever the state is: a guest with an ISO image of the local cache must start while service and store are down.
# status() tells whether the storage works.
sub check_connection { return 1 }

# Have the mount. The service is asked for it and for nothing of the store.
sub activate_storage {
    my ($class, $storeid, $scfg, $cache) = @_;

    my $mounted = PVE::Bucketworks::Node::is_mounted($scfg->{path});
    # To mount takes a process to start; to find all well is a matter of milliseconds.
    my $seconds = $cache->{bucketworks_silent} ? 0.3 : $mounted ? 1 : 5;
    my ($result, $error) = PVE::Bucketworks::Client::ask($storeid, 'activate', {}, seconds => $seconds);
    $cache->{bucketworks_silent} = 1 if $error && $error->{code} eq 'deadline';
    # The kernel's list also has a mount whose process has died, so the service's word goes first.
    return 1 if $error ? $mounted : $result->{mounted};
    # PVE activates a storage that is being added before it writes storage.cfg: nobody knows it yet.
    return 1 if $error && $error->{code} eq 'not-found';

    $error //= { message => "not mounted at $scfg->{path}: $result->{reason}" };
    my $text = PVE::Bucketworks::Client::error_text($storeid, $error);
    my $local = PVE::Bucketworks::Node::setting('state_dir') . "/$storeid/cache";
    die $text if !-d $local;
    # Local copies can be read. Nothing can be written: see get_subdir().
    warn $text;
    return 1;
}

sub deactivate_storage {
    my ($class, $storeid, $scfg, $cache) = @_;

    PVE::Bucketworks::Client::call($storeid, 'deactivate', {}, seconds => 20)
        if PVE::Bucketworks::Node::is_mounted($scfg->{path});
    return 1;
}

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

# The directory into which PVE writes by itself (uploads, downloads, vzdump).
#
# While the mount is not there this is a place where nothing can be created: `mkdir -p` and `cp` would otherwise fill
# the node's root disk below the bare mount point and call it done. It must not die: PVE asks all storages for their
# directories to find out whose a path is.
sub get_subdir {
    my ($class, $scfg, $vtype) = @_;

    my $directory = $class->SUPER::get_subdir($scfg, $vtype);
    return $directory if PVE::Bucketworks::Node::is_mounted($scfg->{path});
    my $name = ($scfg->{path} =~ m{([^/]+)/*\z}) ? $1 : 'storage';
    return "/proc/self/$name-is-not-mounted/$vtype";
}

sub filesystem_path {
    my ($class, $scfg, $volname, $snapname) = @_;

    my ($vtype, $name, $vmid) = $class->parse_volname($volname);
    die "a file has no snapshots\n" if defined($snapname);
    die "volume '$volname': storage type $TYPE holds files, not disks (bucketdisks does)\n" if $vtype eq 'images';
    my $path = PVE::Bucketworks::Node::absolute_path($class->get_subdir($scfg, $vtype) . "/$name");
    return wantarray ? ($path, $vmid, $vtype) : $path;
}

# Backups are on the mount; the others are local copies, whether they have been fetched or not: activate_volume() does.
# PVE takes the path of a snippet without activating it, so a snippet is fetched here.
sub path {
    my ($class, $scfg, $volname, $storeid, $snapname) = @_;

    my ($path, $vmid, $vtype) = $class->filesystem_path($scfg, $volname, $snapname);
    if ($vtype ne 'backup' && defined($storeid) && !$through_mount) {
        my $local = $class->_cached($storeid, $volname);
        if ($vtype eq 'snippets') {
            # What is there stays good enough while nobody knows better.
            PVE::Bucketworks::Client::ask($storeid, 'fetch', { volname => $volname }, seconds => 4, log => sub { });
            $path = $local;
        } elsif ($vtype ne 'import' || -e $local) {
            $path = $local;
        }
    }
    return wantarray ? ($path, $vmid, $vtype) : $path;
}

# As the service knows it: an image within an OVA is the OVA.
sub _outer {
    my ($volname) = @_;
    return $volname =~ m{\A(import/[^/]+\.ova)/} ? $1 : $volname;
}

sub _cached {
    my ($class, $storeid, $volname) = @_;

    my ($vtype, $name) = $class->parse_volname(_outer($volname));
    return PVE::Bucketworks::Node::cached_path($storeid, $vtype, $name);
}

# --- volumes ----------------------------------------------------------------------------------------------------------

sub list_volumes {
    my ($class, $storeid, $scfg, $vmid, $content_types) = @_;

    my $wanted = { map { $_ => 1 } @$content_types };
    delete @$wanted{qw(iso vztmpl)} if defined($vmid); # they belong to no guest
    my @content = sort grep { $wanted->{$_} } qw(backup iso vztmpl snippets import);
    return [] if !@content;

    my $args = { content => \@content };
    $args->{vmid} = int($vmid) if defined($vmid);
    my $result = PVE::Bucketworks::Client::call($storeid, 'list', $args, seconds => 10);

    my $volumes = [];
    for my $told (@{ $result->{volumes} }) {
        my $type = $told->{content} // next;
        next if !$wanted->{$type};
        next if defined($vmid) && $type eq 'backup' && ($told->{vmid} // 0) != $vmid;
        # What PVE could not name again (an odd suffix put there by another tool) would only stand in the way.
        my $parsed = eval { ($class->parse_volname($told->{volname}))[0] };
        next if ($parsed // '') ne $type;

        my $volume = {
            volid => "$storeid:$told->{volname}",
            content => $type,
            format => $told->{format},
            size => _number($told->{size}),
        };
        $volume->{ctime} = _number($told->{ctime}) if defined($told->{ctime});
        $volume->{vmid} = _number($told->{vmid}) if $told->{vmid};
        $volume->{subtype} = $told->{subtype} || 'unknown' if $type eq 'backup';
        $volume->{notes} = $told->{notes} if defined($told->{notes}) && $told->{notes} ne '';
        $volume->{protected} = 1 if $told->{protected};
        push @$volumes, $volume;
    }
    return $volumes;
}

sub list_images { return [] }

# Have the file ready to be opened: a local copy, fetched with progress in the task's log, or the mount for a backup.
# Dies where neither store nor local copy has it.
sub activate_volume {
    my ($class, $storeid, $scfg, $volname, $snapname, $cache, $hints) = @_;

    die "a file has no snapshots\n" if $snapname;
    my ($vtype) = $class->parse_volname($volname);
    return $class->_activate_on_mount($storeid, $scfg, $volname) if $vtype eq 'backup';

    my $local = $class->_cached($storeid, $volname);
    my (undef, $error) = PVE::Bucketworks::Client::ask($storeid, 'ping', {}, seconds => 2);
    my $result;
    ($result, $error) =
        PVE::Bucketworks::Client::ask($storeid, 'fetch', { volname => _outer($volname) }, silence => SILENCE_SECONDS)
        if !$error;
    if (!$error) {
        die "storage '$storeid': the service keeps local copies at $result->{path}, not at $local (is state_dir of"
            . " config.toml the same for both? restart bucketworks-pve)\n"
            if PVE::Bucketworks::Node::absolute_path($result->{path}) ne $local;
    } elsif ($error->{code} =~ m/\A(?:unavailable|deadline|busy)\z/ && -f $local) {
        my $text = PVE::Bucketworks::Client::error_text($storeid, $error);
        warn "using the local copy of $storeid:$volname: $text";
    } elsif ($vtype ne 'import' || $error->{code} ne 'refused' || !PVE::Bucketworks::Node::is_mounted($scfg->{path})) {
        # An import that is larger than the cache can still be read from the mount, front to back.
        die PVE::Bucketworks::Client::error_text($storeid, $error);
    }
    return 1;
}

# The service looks at the object, so that the mount knows it too if another node has just written it.
sub _activate_on_mount {
    my ($class, $storeid, $scfg, $volname) = @_;

    die "storage '$storeid' is not mounted at $scfg->{path} (see 'systemctl status bucketworks-mount\@$storeid')\n"
        if !PVE::Bucketworks::Node::is_mounted($scfg->{path});
    my (undef, $error) =
        PVE::Bucketworks::Client::ask($storeid, 'size', { volname => _outer($volname) }, seconds => 10);
    # The mount reads without the service.
    die PVE::Bucketworks::Client::error_text($storeid, $error)
        if $error && $error->{code} !~ m/\A(?:unavailable|deadline|busy)\z/;
    return 1;
}

sub deactivate_volume { return 1 }

sub volume_size_info {
    my ($class, $scfg, $storeid, $volname, $timeout) = @_;

    my ($vtype, undef, undef, undef, undef, undef, $format) = $class->parse_volname($volname);
    my ($result, $error) =
        PVE::Bucketworks::Client::ask($storeid, 'size', { volname => _outer($volname) }, seconds => $timeout || 10);
    if ($error) {
        my @stat = $vtype eq 'backup' ? () : stat($class->_cached($storeid, $volname));
        die PVE::Bucketworks::Client::error_text($storeid, $error)
            if !@stat || $error->{code} !~ m/\A(?:unavailable|deadline|busy)\z/;
        $result = { size => $stat[7], ctime => $stat[9] };
    }
    my ($size, $ctime) = map { _number($result->{$_}) } qw(size ctime);
    return wantarray ? ($size, $format, $size, undef, $ctime) : $size;
}

# Really deletes, and refuses what is protected or locked. Within PVE's lock of 60 s.
sub free_image {
    my ($class, $storeid, $scfg, $volname, $is_base, $format) = @_;

    PVE::Bucketworks::Client::call($storeid, 'free', { volname => $volname }, seconds => 30);
    return undef; ## no critic (the contract: no worker)
}

# undef: this volume has no such attribute.
sub get_volume_attribute {
    my ($class, $scfg, $storeid, $volname, $attribute) = @_;

    my ($vtype) = $class->parse_volname($volname);
    return if $vtype ne 'backup' || ($attribute ne 'notes' && $attribute ne 'protected');
    my $value = PVE::Bucketworks::Client::call(
        $storeid, 'attribute_get', { volname => $volname, name => $attribute }, seconds => 5,
    )->{value};
    return $attribute eq 'notes' ? $value // '' : $value ? 1 : 0;
}

sub update_volume_attribute {
    my ($class, $scfg, $storeid, $volname, $attribute, $value) = @_;

    my ($vtype) = $class->parse_volname($volname);
    die "only backups have '$attribute'\n" if $vtype ne 'backup';
    die "attribute '$attribute' is not supported for storage type '$TYPE'\n"
        if $attribute ne 'notes' && $attribute ne 'protected';
    PVE::Bucketworks::Client::call(
        $storeid,
        'attribute_set',
        { volname => $volname, name => $attribute, value => $attribute eq 'notes' ? $value // '' : $value ? 1 : 0 },
        seconds => 10,
    );
    return;
}

# The base class marks; it would unlink local files, so the deleting is ours. A backup that the store holds locked is
# reported and stays; anything else that fails makes the whole fail, after all others have been tried.
sub prune_backups {
    my ($class, $scfg, $storeid, $keep, $vmid, $type, $dryrun, $logfunc) = @_;

    $logfunc //= sub { print "$_[1]\n" };
    my $list = $class->SUPER::prune_backups($scfg, $storeid, $keep, $vmid, $type, 1, $logfunc);
    return $list if $dryrun;

    my $failed = 0;
    for my $entry (grep { ($_->{mark} // '') eq 'remove' } @$list) {
        my $volid = $entry->{volid};
        my (undef, $volname) = PVE::Storage::Plugin::parse_volume_id($volid);
        $logfunc->('info', "removing backup '$volid'");
        my (undef, $error) = PVE::Bucketworks::Client::ask($storeid, 'free', { volname => $volname }, seconds => 30);
        next if !$error || $error->{code} eq 'not-found'; # another node was faster
        my $text = PVE::Bucketworks::Client::error_text($storeid, $error);
        chomp $text;
        if ($error->{code} eq 'refused') {
            $entry->{mark} = 'protected';
            $logfunc->('warn', "keeping backup '$volid' - $text");
        } else {
            $failed = 1;
            $logfunc->('err', "error when removing backup '$volid' - $text");
        }
    }
    die "error pruning backups - check log\n" if $failed;
    return $list;
}

# --- streams ----------------------------------------------------------------------------------------------------------

# `raw+size`: the size in 8 bytes, little endian, and the file byte for byte, on all releases. (The base class of PVE 8
# takes every stream for a disk's, and that of PVE 9 converts a qcow2 file that is to be imported later.)
sub volume_export_formats {
    my ($class, $scfg, $storeid, $volname, $snapshot, $base_snapshot, $with_snapshots) = @_;

    return () if defined($snapshot) || defined($base_snapshot) || $with_snapshots;
    my ($vtype) = $class->parse_volname($volname);
    return $vtype =~ m/\A(?:iso|vztmpl|snippets|import)\z/ ? ('raw+size') : ();
}

sub volume_import_formats { my ($class, @rest) = @_; return $class->volume_export_formats(@rest) }

sub volume_export {
    my ($class, $scfg, $storeid, $fh, $volname, $format, @snapshots) = @_;

    die "storage type $TYPE exports no '$volname' as '$format'\n"
        if !grep { $_ eq $format } $class->volume_export_formats($scfg, $storeid, $volname, @snapshots);
    $class->activate_volume($storeid, $scfg, $volname);
    my $path = $class->path($scfg, $volname, $storeid);
    open(my $file, '<:raw', $path) or die "cannot open '$path': $!\n";
    my $size = -s $file;
    _write($fh, pack('Q<', $size), 'the stream');
    my $count = _copy($file, $path, $fh, 'the stream');
    die "'$path' had $size bytes and gave $count\n" if $count != $size;
    return;
}

# Written to the mount: the object is there when the file has been closed without error, and not before.
sub volume_import {
    my ($class, $scfg, $storeid, $fh, $volname, $format, $snapshot, $base_snapshot, $with_snapshots, $rename) = @_;

    die "storage type $TYPE imports no '$volname' from '$format'\n"
        if !grep { $_ eq $format }
        $class->volume_import_formats($scfg, $storeid, $volname, $snapshot, $base_snapshot, $with_snapshots);
    my $path = $class->filesystem_path($scfg, $volname);
    my $head = '';
    while (length($head) < 8) {
        sysread($fh, $head, 8 - length($head), length($head)) or die "the stream has no size at its front\n";
    }
    my $size = unpack('Q<', $head);

    sysopen(my $file, $path, O_WRONLY | O_CREAT | O_EXCL, 0644) or die "cannot create '$path': $!\n";
    eval {
        my $count = _copy($fh, 'the stream', $file, $path);
        # Other types round the size up to whole sectors.
        die "the stream ended after $count of $size bytes\n" if $count > $size || $size - $count >= 512;
        close($file) or die "cannot finish '$path': $!\n";
    };
    if (my $error = $@) {
        unlink($path) or $!{ENOENT} or warn "cannot remove '$path': $!\n";
        die $error;
    }
    return "$storeid:$volname";
}

# The bytes that were copied, until the end of $from.
sub _copy {
    my ($from, $from_name, $to, $to_name) = @_;

    my $total = 0;
    while (1) {
        my $count = sysread($from, my $buffer, 1024 * 1024);
        next if !defined($count) && $!{EINTR};
        die "cannot read $from_name: $!\n" if !defined($count);
        return $total if $count == 0;
        _write($to, $buffer, $to_name);
        $total += $count;
    }
}

sub _write {
    my ($to, $bytes, $name) = @_;

    my $done = 0;
    while ($done < length($bytes)) {
        my $count = syswrite($to, $bytes, length($bytes) - $done, $done);
        next if !defined($count) && $!{EINTR};
        die "cannot write $name: $!\n" if !defined($count);
        $done += $count;
    }
    return;
}

sub get_import_metadata {
    my ($class, $scfg, $volname, $storeid) = @_;

    # The description lies at the front of an OVA: no need to fetch gigabytes for it.
    local $through_mount = 1;
    $class->_activate_on_mount($storeid, $scfg, $volname);
    return PVE::Storage::DirPlugin::get_import_metadata($class, $scfg, $volname, $storeid);
}

# --- what files do not have -------------------------------------------------------------------------------------------

sub volume_has_feature { return undef } ## no critic (the contract)
sub storage_can_replicate { return 0 }
sub volume_snapshot_needs_fsfreeze { return 0 }
sub volume_snapshot_info { return {} }
sub volume_qemu_snapshot_method { return 'storage' }

for my $name (
    qw(
    alloc_image clone_image create_base rename_volume rename_snapshot volume_resize volume_snapshot
    volume_snapshot_rollback volume_snapshot_delete volume_rollback_is_possible
    )
) {
    no strict 'refs'; ## no critic (one text for all)
    *$name = sub { die "storage type $TYPE holds files, not disks: no $name (bucketdisks does)\n" };
}

sub _number {
    my ($value) = @_;
    return defined($value) && !ref($value) && $value =~ m/\A([0-9]{1,19})(?:\.[0-9]+)?\z/ ? $1 + 0 : 0;
}

1;
