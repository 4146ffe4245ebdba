#!/usr/bin/perl -T
# SPDX-License-Identifier: AGPL-3.0-or-later
# Each method of BucketDisksPlugin against its contract, with a service that says what the test tells it to.
use strict;
use warnings;

use File::Temp ();
use Scalar::Util qw(tainted);
use Test::More;

use ScriptedCore;
use PVE::INotify;
use PVE::Storage;
use PVE::Storage::Custom::BucketDisksPlugin;

my $plugin = 'PVE::Storage::Custom::BucketDisksPlugin';
my $dir = File::Temp->newdir('bw-XXXXXX', TMPDIR => 1, CLEANUP => 1);
my ($root) = ("$dir" =~ m{\A(/[\w./+-]+)\z});
$ENV{BUCKETWORKS_CONFIG} = "$root/config.toml";

my $core = ScriptedCore->start({});
my $scfg = { type => 'bucketdisks', 'bw-bucket' => 'b', content => { images => 1 } };
my $disk = 'vm-100-disk-0';

sub answer {
    my ($result) = @_;
    return sub { return { result => $result } };
}

sub error {
    my ($code, $message) = @_;
    return sub { return { error => { code => $code, message => $message, hint => 'do this', retryable => 0 } } };
}

sub refuses {
    my ($pattern, $name, $code) = @_;
    eval { $code->(); 1 };
    like($@, $pattern, $name);
    is(($@ =~ tr/\n//), 1, "$name: one line") if $@;
    return;
}

sub asked { return ($core->requests())[-1] }

subtest 'names' => sub {
    is_deeply([$plugin->parse_volname($disk)], ['images', $disk, 100, undef, undef, '', 'raw'], 'a disk');
    is_deeply([$plugin->parse_volname('base-7-disk-1')], ['images', 'base-7-disk-1', 7, undef, undef, 1, 'raw'], 'a template');
    is_deeply(
        [$plugin->parse_volname('base-7-disk-1/vm-8-disk-0')],
        ['images', 'vm-8-disk-0', 8, 'base-7-disk-1', 7, '', 'raw'],
        'a linked clone',
    );
    for my $wrong ('', 'x', 'vm-0-disk-1', 'vm-1-a/vm-2-b', "vm-1-disk-0\n", '../vm-1-disk-0', 'vm-1-d k', 'iso/a.iso') {
        refuses(qr/unable to parse disk name/, "no name: $wrong", sub { $plugin->parse_volname($wrong =~ s/\n/ /r) });
    }
    my $odd = substr($ENV{PATH} // '', 0, 0) . $disk;
    ok(!tainted(($plugin->parse_volname($odd))[1]), 'names come back untainted');
};

subtest 'path asks nobody' => sub {
    $core->listen({});
    my @path = $plugin->path($scfg, $disk, 's3-Disks');
    is_deeply(
        \@path, ['iscsi://127.0.0.1:3265/iqn.2025-01.internal.bucketworks:s3-:44isks:vm-100-disk-0/0', 100, 'images'], 'a URL',
    );
    is(
        scalar($plugin->path({ %$scfg, 'bw-gateway-port' => 4000 }, 'base-1-disk-0/vm-2-state-Snap_1', 's', 'x_Y')),
        'iscsi://127.0.0.1:4000/iqn.2025-01.internal.bucketworks:s:vm-2-state-:53nap:5f1:x:5f:59/0',
        'of a clone, of a snapshot, at another port',
    );
    is(scalar($core->requests()), 0, 'no request');
    refuses(qr/is no file/, 'no path without a storage', sub { $plugin->filesystem_path($scfg, $disk) });
};

subtest 'verbs' => sub {
    $core->listen({
        disk_alloc => answer({ volname => $disk }),
        disk_free => answer({}),
        disk_base => answer({ volname => 'base-100-disk-0' }),
        disk_clone => answer({ volname => 'base-100-disk-0/vm-101-disk-0' }),
        disk_rename => answer({ volname => 'vm-102-disk-0' }),
        disk_resize => answer({ size => 2048 }),
        '*' => answer({}),
    });
    is($plugin->alloc_image('s', $scfg, 100, 'raw', undef, 1024), $disk, 'alloc');
    is_deeply(asked()->{args}, { vmid => 100, size_bytes => 1048576, format => 'raw' }, 'in bytes');
    refuses(qr/disks in a bucket are raw/, 'qcow2', sub { $plugin->alloc_image('s', $scfg, 100, 'qcow2', undef, 1) });
    is($plugin->free_image('s', $scfg, $disk), undef, 'free needs no worker');
    is($plugin->create_base('s', $scfg, $disk), 'base-100-disk-0', 'template');
    is($plugin->clone_image($scfg, 's', 'base-100-disk-0', 101), 'base-100-disk-0/vm-101-disk-0', 'clone');
    is($plugin->rename_volume($scfg, 's', $disk, 102), 's:vm-102-disk-0', 'rename');
    ok($plugin->volume_resize($scfg, 's', $disk, 2048, 1), 'resize');
    $plugin->volume_snapshot($scfg, 's', $disk, 'one');
    is_deeply([asked()->@{qw(method args)}], ['disk_snapshot', { volname => $disk, snap => 'one' }], 'snapshot');
    $plugin->volume_snapshot_rollback($scfg, 's', $disk, 'one');
    is(asked()->{method}, 'disk_rollback', 'rollback');
    $plugin->volume_snapshot_delete($scfg, 's', $disk, 'one', 1);
    is(asked()->{method}, 'disk_snapshot_delete', 'deletion');
    ok(asked()->{deadline_ms} < 60_000, 'within the lock');
    $core->listen({ '*' => error('refused', 'read by others') });
    refuses(qr/\Astorage 's': read by others \(do this\)\n\z/, 'an error is one line', sub { $plugin->free_image('s', $scfg, $disk) });
    $core->listen({ disk_alloc => answer({ volname => "x\ny; rm" }) });
    refuses(qr/told no name/, 'an odd name', sub { $plugin->alloc_image('s', $scfg, 1, 'raw', undef, 1) });
};

subtest 'lists and sizes' => sub {
    my $told = [
        { volname => $disk, size => 10, used => 5, vmid => 100, ctime => 7, parent => '' },
        { volname => 'base-1-disk-0/vm-101-disk-0', size => 11, used => undef, vmid => 101, parent => 'base-1-disk-0' },
        { volname => 'odd', size => 1 },
    ];
    $core->listen({
        disk_list => answer({ volumes => $told }),
        disk_size => answer({ size => 4096, used => 1024, parent => '' }),
        disk_snapshots => answer({ snapshots => [{ name => 'a', id => 'i', timestamp => 3 }] }),
    });
    is_deeply(
        $plugin->list_images('s', $scfg),
        [
            { volid => "s:$disk", format => 'raw', size => 10, used => 5, vmid => 100, ctime => 7 },
            {
                volid => 's:base-1-disk-0/vm-101-disk-0', format => 'raw', size => 11, vmid => 101, parent => 'base-1-disk-0',
            },
        ],
        'a list',
    );
    is(scalar(@{ $plugin->list_images('s', $scfg, undef, ["s:$disk"]) }), 1, 'only those');
    $plugin->list_images('s', $scfg, 100);
    is(asked()->{args}->{vmid}, 100, 'of one guest');
    is_deeply([$plugin->volume_size_info($scfg, 's', $disk)], [4096, 'raw', 1024, undef], 'size');
    is(scalar($plugin->volume_size_info($scfg, 's', $disk)), 4096, 'as a number');
    is_deeply($plugin->volume_snapshot_info($scfg, 's', $disk), { a => { id => 'i', timestamp => 3 } }, 'snapshots');
};

subtest 'serving' => sub {
    $core->listen({
        disk_activate => sub {
            my (undef, $request) = @_;
            return { result => { url => 'iscsi://x', path => $request->{args}->{kernel} ? '/dev/disk/by-path/x' : '' } };
        },
        disk_deactivate => answer({}),
    });
    ok($plugin->activate_volume('s', $scfg, $disk, undef, {}), 'activate');
    is_deeply(asked()->{args}, { volname => $disk, kernel => 0 }, 'without the kernel');
    my $device = $plugin->map_volume('s', $scfg, $disk, 'snap');
    is($device, '/dev/disk/by-path/x', 'a block device');
    ok(!tainted($device), 'untainted');
    is_deeply(asked()->{args}, { volname => $disk, kernel => 1, snap => 'snap' }, 'of a snapshot');
    ok($plugin->unmap_volume('s', $scfg, $disk), 'unmap');
    ok($plugin->deactivate_volume('s', $scfg, $disk), 'deactivate');
    is(asked()->{method}, 'disk_deactivate', 'is asked');
};

subtest 'features' => sub {
    ok($plugin->volume_has_feature($scfg, 'clone', 's', 'base-1-disk-0'), 'clone a template');
    ok($plugin->volume_has_feature($scfg, 'clone', 's', $disk, 'snap'), 'clone a snapshot');
    is($plugin->volume_has_feature($scfg, 'clone', 's', $disk), undef, 'not what is now');
    ok($plugin->volume_has_feature($scfg, 'rename', 's', $disk), 'rename');
    is($plugin->volume_has_feature($scfg, 'replicate', 's', $disk), undef, 'no replication');
    is_deeply([$plugin->volume_export_formats($scfg, 's', $disk)], ['raw+size'], 'export');
    is_deeply([$plugin->volume_import_formats($scfg, 's', $disk, undef, undef, 1)], [], 'not with snapshots');
    is($plugin->volume_qemu_snapshot_method('s', $scfg, $disk), 'storage', 'the storage takes snapshots');
    is($plugin->volume_snapshot_needs_fsfreeze(), 1, 'a container freezes its file system for them');
};

subtest 'status never dies' => sub {
    $core->listen({ status => answer({ total => 10, avail => 6, used => 4, active => 1 }) });
    is_deeply([$plugin->status('s', $scfg, {})], [10, 6, 4, 1], 'numbers');
    $core->listen({ status => error('unavailable', 'x') });
    is_deeply([$plugin->status('s', $scfg, {})], [0, 0, 0, 0], 'an error');
    $core->stop();
    is_deeply([$plugin->status('s', $scfg, {})], [0, 0, 0, 0], 'no service');
};

subtest 'properties' => sub {
    my $defined = $plugin->properties();
    my $options = $plugin->options();
    my $own = { map { $_ => 1 } qw(nodes disable content bwlimit) };
    is_deeply([grep { !$defined->{$_} && !$own->{$_} } sort keys %$options], [], 'alone it defines all that it takes');
    no warnings 'once'; ## no critic (the base class' method, as where the files type is loaded)
    local *PVE::Storage::Plugin::lookup = sub { return 'PVE::Storage::Custom::BucketFilesPlugin' };
    ok(!$plugin->properties()->{'bw-bucket'}, 'beside the files type it defines its own');
    ok($plugin->properties()->{'bw-flush'}, 'and those');
};

subtest 'removal' => sub {
    $core->listen({ deactivate => error('busy', '2 disks are active') });
    refuses(qr/2 disks are active/, 'a storage with active disks stays', sub { $plugin->on_delete_hook('s1', $scfg) });
    $core->listen({ deactivate => answer({}) });
    $plugin->on_delete_hook('s1', $scfg);
    is(asked()->{method}, 'deactivate', 'the service was asked');
};

done_testing();
