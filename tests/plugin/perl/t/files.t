#!/usr/bin/perl -T
# SPDX-License-Identifier: AGPL-3.0-or-later
# Each method of BucketFilesPlugin against its contract, with a service that says what the test tells it to.
use strict;
use warnings;

use File::Path ();
use File::Temp ();
use Scalar::Util qw(tainted);
use Test::More;
use Time::HiRes qw(time sleep);

use ScriptedCore;
use PVE::INotify;
use PVE::Storage;
use PVE::Storage::Custom::BucketFilesPlugin;

my $plugin = 'PVE::Storage::Custom::BucketFilesPlugin';
my ($dir) = (File::Temp->newdir('bw-XXXXXX', TMPDIR => 1, CLEANUP => 1));
my ($root) = ("$dir" =~ m{\A(/[\w./+-]+)\z});
my ($mount, $state) = ("$root/mnt", "$root/state");
File::Path::make_path($mount, "$state/s1/cache/template/iso", "$root/priv");
write_file("$root/config.toml", "[pve]\nstate_dir = \"$state\" # not the default\nrun_dir = '$root/run'\n");
$ENV{BUCKETWORKS_CONFIG} = "$root/config.toml";
$PVE::Bucketworks::Node::SECRETS = "$root/priv";
$PVE::Bucketworks::Node::MOUNTS = "$root/mounts";

my $core = ScriptedCore->start({});
my $scfg = { type => 'bucketfiles', path => $mount, 'bw-bucket' => 'b', content => { backup => 1, iso => 1 } };
my $backup = 'backup/vzdump-qemu-100-2026_01_02-03_04_05.vma.zst';

sub write_file {
    my ($path, $text) = @_;
    open(my $file, '>', $path) or die "$path: $!\n";
    print {$file} $text;
    close($file);
    return;
}

sub mounted {
    my ($is) = @_;
    my $line = $is ? "bucketworks $mount fuse.bucketworks rw 0 0\n" : '';
    write_file("$root/mounts", "proc /proc proc rw 0 0\ntmpfs /odd\\040name tmpfs rw 0 0\n$line");
    return;
}

sub refuses {
    my ($pattern, $name, $code) = @_;
    my $result = eval { $code->(); 1 };
    like($@, $pattern, $name);
    is(($@ =~ tr/\n//), 1, "$name: one line") if $@;
    return;
}

sub within {
    my ($seconds, $name, $code) = @_;
    my $begin = time();
    my @result = $code->();
    my $took = time() - $begin;
    ok($took < $seconds, "$name: within $seconds s") or diag("took $took s");
    return wantarray ? @result : $result[0];
}

sub answer { my ($result) = @_; return sub { return { result => $result } } }
sub error { my ($code, $message) = @_; return sub { return { error => { code => $code, message => $message } } } }
my $hung = sub { sleep(60); return };

mounted(1);

subtest 'what the loader asks' => sub {
    my %expected = ('15/6' => 15, '13/4' => 13, '11/2' => 11, '16/7' => 15, '21/6' => 15, '10/1' => 15);
    for my $version (sort keys %expected) {
        ($PVE::Storage::apiver, $PVE::Storage::apiage) = split(m{/}, $version);
        is($plugin->api(), $expected{$version}, "APIVER/APIAGE $version");
    }
    ($PVE::Storage::apiver, $PVE::Storage::apiage) = (15, 6);
    is($plugin->type(), 'bucketfiles', 'type');
    my $data = $plugin->plugindata();
    is_deeply([sort keys %{ $data->{content}->[0] }], [qw(backup import iso none snippets vztmpl)], 'content');
    my ($properties, $options) = ($plugin->properties(), $plugin->options());
    is_deeply([grep { !m/\Abw-/ } keys %$properties], [], 'every property of ours is prefixed');
    my %upstream = map { $_ => 1 } qw(path nodes disable content prune-backups max-protected-backups bwlimit);
    is_deeply([grep { !$properties->{$_} && !$upstream{$_} } keys %$options], [], 'every option is defined by somebody');
    for my $secret (keys %{ $data->{'sensitive-properties'} }) {
        ok($options->{$secret}->{optional}, "$secret is optional, or it could not be kept out of storage.cfg");
    }
    ok((grep { $_ eq 'bucketfiles' } @PVE::Storage::Plugin::SHARED_STORAGE) == 1, 'shared between nodes');
};

subtest 'check_config' => sub {
    is($plugin->check_config('s1', { 'bw-bucket' => 'b' }, 1)->{path}, '/mnt/pve/s1', 'a default path');
    is($plugin->check_config('s1', { 'bw-bucket' => 'b', path => '/x' }, 1)->{path}, '/x', 'a path of ones own');
    ok(!exists($plugin->check_config('s1', { content => {} }, 0)->{path}), 'an update brings no path');
    for my $path ('x', '/', '/a b', '/a/../b', '/a/..', "/a\nb") {
        refuses(qr/illegal path/, "path '" . ($path =~ s/\n/?/r) . "'", sub {
            $plugin->check_config('s1', { 'bw-bucket' => 'b', path => $path }, 1);
        });
    }
};

subtest 'secrets' => sub {
    my @asked;
    my $file = "$root/priv/s1.bucketfiles";
    $core->listen({ check => answer({}), deactivate => answer({}) });
    my $content = sub { open(my $fh, '<', $file) or return; local $/; return <$fh> };

    $plugin->on_add_hook('s1', $scfg, 'bw-secret-key' => 'top secret');
    is($content->(), "bw-secret-key top secret\n", 'kept in the private file');
    is((stat($file))[2] & 07777, 0600, 'mode 0600');
    my ($request) = $core->requests();
    is($request->{method}, 'check', 'tried before it is kept');
    is_deeply(
        $request->{args},
        {
            config => { type => 'bucketfiles', path => $mount, 'bw-bucket' => 'b', content => 'backup,iso' },
            secrets => { 'bw-secret-key' => 'top secret' },
        },
        'with configuration and secrets',
    );

    $plugin->on_update_hook_full('s1', $scfg, { 'bw-region' => 'x' }, ['bw-prefix'], {});
    is($content->(), "bw-secret-key top secret\n", 'an update that does not name them leaves them');
    $request = ($core->requests())[-1];
    is($request->{args}->{config}->{'bw-region'}, 'x', 'the update is tried');
    is($request->{args}->{secrets}->{'bw-secret-key'}, 'top secret', 'with the secrets that stay');

    $plugin->on_update_hook_full('s1', { %$scfg, 'bw-prefix' => 'p' }, {}, ['bw-prefix'], {});
    ok(!exists(($core->requests())[-1]->{args}->{config}->{'bw-prefix'}), 'a deletion is tried');

    $plugin->on_update_hook_full('s1', $scfg, {}, undef, { 'bw-encryption-key' => 'a b', 'bw-secret-key' => 'new' });
    is($content->(), "bw-encryption-key a b\nbw-secret-key new\n", 'changed and added');
    $plugin->on_update_hook_full('s1', $scfg, {}, undef, { 'bw-encryption-key' => undef });
    is($content->(), "bw-secret-key new\n", 'one deleted');

    my $before = scalar($core->requests());
    $plugin->on_update_hook_full('s1', $scfg, { content => { iso => 1 } }, undef, {});
    $plugin->on_update_hook_full('s1', $scfg, { disable => 1, 'bw-region' => 'y' }, undef, {});
    is(scalar($core->requests()), $before, 'what is not ours, or switches it off, needs no store');

    local $PVE::Storage::config = { ids => { s1 => { %$scfg, 'bw-endpoint' => 'e' } } };
    $plugin->on_update_hook('s1', { 'bw-region' => 'z' }, 'bw-secret-key' => 'newer');
    is($content->(), "bw-secret-key newer\n", 'PVE 8: the older hook');
    $request = ($core->requests())[-1];
    is($request->{args}->{config}->{'bw-endpoint'}, 'e', 'PVE 8: with what stays as it is');

    $core->listen({ check => error('denied', '403'), deactivate => answer({}) });
    refuses(qr/\Astorage 's1': 403\n/, 'a bad key is refused', sub {
        $plugin->on_update_hook_full('s1', $scfg, {}, undef, { 'bw-secret-key' => 'bad' });
    });
    is($content->(), "bw-secret-key newer\n", 'and not kept');
    refuses(qr/403/, 'a bad new storage is refused', sub { $plugin->on_add_hook('t', $scfg, 'bw-secret-key' => 'x') });
    ok(!-e "$root/priv/t.bucketfiles", 'and leaves nothing');
    for my $bad ("a\nb", ' a', "a ", '') {
        refuses(qr/one line without spaces at its ends/, 'a secret that would not come back', sub {
            $plugin->on_add_hook('t', { %$scfg, disable => 1 }, 'bw-secret-key' => $bad);
        });
    }
    is_deeply([glob("$root/priv/*tmp*")], [], 'no temporary file stays');
    $plugin->on_add_hook('t', { %$scfg, nodes => { other => 1 } }, 'bw-secret-key' => 'x');
    ok(-e "$root/priv/t.bucketfiles", 'a storage of other nodes is not tried here');

    $core->listen({ deactivate => error('busy', 'an upload is under way') });
    refuses(qr/an upload is under way/, 'a storage in use stays', sub { $plugin->on_delete_hook('s1', $scfg) });
    ok(-e $file, 'with its secrets');
    $core->stop();
    $plugin->on_delete_hook('s1', $scfg);
    ok(!-e $file, 'a deleted storage leaves no secrets, service or not');
    $plugin->on_delete_hook('s1', $scfg);
    pass('twice is no error');
};

subtest 'status' => sub {
    $core->listen({ status => answer({ total => 100, avail => 60, used => 40, active => JSON::true() }) });
    is_deeply([$plugin->status('s1', $scfg, {})], [100, 60, 40, 1], 'numbers of the service');
    $core->listen({ status => answer({ total => 'x', used => -1, active => 1 }) });
    is_deeply([$plugin->status('s1', $scfg, {})], [0, 0, 0, 1], 'nonsense is 0');
    my %answers = (
        hung => $hung, unavailable => error('unavailable', 'no'), closed => sub { return },
        garbage => sub { print { $_[2] } "nonsense\n"; return }, list => answer([]), null => answer(undef),
    );
    for my $kind (sort keys %answers) {
        $core->listen({ status => $answers{$kind} });
        my @warnings;
        local $SIG{__WARN__} = sub { push @warnings, @_ };
        my @status = within(2, $kind, sub { return $plugin->status('s1', $scfg, {}) });
        is_deeply(\@status, [0, 0, 0, 0], $kind);
        is_deeply(\@warnings, [], "$kind: nothing in the log, ten seconds later it would be there again");
    }
    $core->stop();
    is_deeply([within(0.5, 'no service', sub { $plugin->status('s1', $scfg, {}) })], [0, 0, 0, 0], 'no service');
};

subtest 'a cycle of pvestatd with a hung service' => sub {
    $core->listen({ '*' => $hung });
    my $cache = {};
    within(2, 'one storage', sub {
        ok($plugin->check_connection('s1', $scfg), 'check_connection');
        ok(eval { $plugin->activate_storage('s1', $scfg, $cache) }, 'activate_storage') or diag($@);
        is_deeply([$plugin->status('s1', $scfg, $cache)], [0, 0, 0, 0], 'status');
    });
    within(1, 'the next one', sub {
        $plugin->activate_storage('s2', $scfg, $cache);
        is_deeply([$plugin->status('s2', $scfg, $cache)], [0, 0, 0, 0], 'status');
    });
};

subtest 'activate_storage' => sub {
    $core->listen({ activate => answer({ mounted => JSON::true() }) });
    ok($plugin->activate_storage('s1', $scfg, {}), 'the mount is there');
    mounted(0);
    $core->listen({ activate => error('not-found', 'no such storage') });
    ok($plugin->activate_storage('new', $scfg, {}), 'while it is being added nobody knows it');
    $core->listen({ activate => error('configuration', 'bw-sse customer needs bw-sse-customer-key') });
    refuses(qr/bw-sse customer needs/, 'cannot be mounted', sub { $plugin->activate_storage('new', $scfg, {}) });
    my @warnings;
    local $SIG{__WARN__} = sub { push @warnings, @_ };
    ok($plugin->activate_storage('s1', $scfg, {}), 'local copies still serve');
    is_deeply(\@warnings, ["storage 's1': bw-sse customer needs bw-sse-customer-key\n"], 'and the log says why no more');
    $core->listen({ activate => answer({ mounted => JSON::false(), reason => 'fuse is not there' }) });
    refuses(qr/\Astorage 'new': not mounted at .*: fuse is not there\n/, 'not mounted', sub {
        $plugin->activate_storage('new', $scfg, {});
    });
    mounted(1);
    refuses(qr/fuse is not there/, 'a mount whose process has died', sub { $plugin->activate_storage('new', $scfg, {}) });
    $core->listen({ activate => error('configuration', 'x') });
    ok($plugin->activate_storage('new', $scfg, {}), 'mounted, and the service unhappy: it serves');
};

subtest 'places' => sub {
    mounted(1);
    is($plugin->get_subdir($scfg, 'backup'), "$mount/dump", 'a directory on the mount');
    is($plugin->get_subdir({ path => '/odd name' }, 'iso'), '/odd name/template/iso', 'a mount with a space');
    mounted(0);
    my $nowhere = $plugin->get_subdir($scfg, 'iso');
    like($nowhere, qr{\A/proc/self/mnt-is-not-mounted/}, 'without the mount: a place where nothing can be written');
    ok(!eval { File::Path::make_path($nowhere); 1 } && !-e $nowhere, 'not even by mkdir -p');
    for my $vtype (qw(images rootdir iso vztmpl backup snippets import)) {
        ok(eval { $plugin->get_subdir($scfg, $vtype); 1 }, "$vtype: never dies, PVE asks all storages");
    }
    mounted(1);
};

subtest 'path' => sub {
    $core->listen({ fetch => answer({ path => 'x' }) });
    my $taint = substr($ENV{PATH}, 0, 0);
    my ($path, $vmid, $vtype) = $plugin->path($scfg, $backup . $taint, 's1');
    is($path, "$mount/dump/vzdump-qemu-100-2026_01_02-03_04_05.vma.zst", 'a backup is on the mount');
    is($vmid, 100, 'its guest is known, or others than administrators lose it');
    is($vtype, 'backup', 'its type');
    ok(!tainted($path), 'clean');
    $path = $plugin->path($scfg, "iso/a.iso$taint", 's1');
    is($path, "$state/s1/cache/template/iso/a.iso", 'an ISO image is a local copy, there or not');
    ok(!tainted($path), 'clean');
    is(scalar($core->requests()), 0, 'nobody was asked');
    is($plugin->path($scfg, 'vztmpl/a.tar.zst', 's1'), "$state/s1/cache/template/cache/a.tar.zst", 'a template too');
    is($plugin->path($scfg, 'import/a.ova', 's1'), "$mount/import/a.ova", 'an import is on the mount');
    File::Path::make_path("$state/s1/cache/import");
    write_file("$state/s1/cache/import/a.ova", 'x');
    is($plugin->path($scfg, 'import/a.ova', 's1'), "$state/s1/cache/import/a.ova", 'unless it was fetched');
    is($plugin->path($scfg, 'snippets/a.pl', 's1'), "$state/s1/cache/snippets/a.pl", 'a snippet is a local copy');
    is(($core->requests())[-1]->{method}, 'fetch', 'which PVE takes without activating it');
    is($plugin->filesystem_path($scfg, 'iso/a.iso'), "$mount/template/iso/a.iso", 'without a storage id: the mount');
    $core->stop();
    is(within(1, 'x', sub { $plugin->path($scfg, 'snippets/a.pl', 's1') }), "$state/s1/cache/snippets/a.pl", 'no service');
    refuses(qr/no snapshots/, 'a snapshot', sub { $plugin->path($scfg, 'iso/a.iso', 's1', 'snap') });
    refuses(qr/files, not disks/, 'a disk', sub { $plugin->path($scfg, '100/vm-100-disk-0.raw', 's1') });
};

subtest 'list_volumes' => sub {
    my $told = [
        {
            volname => $backup, content => 'backup', format => 'vma.zst', size => 5, ctime => 1, vmid => 100,
            subtype => 'qemu', notes => "caf\x{e9}", protected => JSON::true(),
        },
        { volname => 'backup/other.vma', content => 'backup', format => 'vma', size => 1, ctime => 2, vmid => 0, subtype => '' },
        { volname => 'backup/odd.exe', content => 'backup', format => 'exe', size => 1, ctime => 2 },
        { volname => 'iso/a.iso', content => 'iso', format => 'iso', size => 7, ctime => 3, notes => '' },
    ];
    $core->listen({ list => answer({ volumes => $told }) });
    my $volumes = $plugin->list_volumes('s1', $scfg, undef, ['rootdir', 'images', 'iso', 'backup']);
    is_deeply(
        $volumes,
        [
            {
                volid => "s1:$backup", content => 'backup', format => 'vma.zst', size => 5, ctime => 1, vmid => 100,
                subtype => 'qemu', notes => "caf\x{e9}", protected => 1,
            },
            { volid => 's1:backup/other.vma', content => 'backup', format => 'vma', size => 1, ctime => 2, subtype => 'unknown' },
            { volid => 's1:iso/a.iso', content => 'iso', format => 'iso', size => 7, ctime => 3 },
        ],
        'in PVE\'s words; what PVE could not name is left out',
    );
    like(JSON->new->canonical->encode($volumes->[0]), qr/"size":5,/, 'numbers are numbers');
    is_deeply(($core->requests())[-1]->{args}, { content => ['backup', 'iso'] }, 'only what files can be is asked for');
    $volumes = $plugin->list_volumes('s1', $scfg, 100, ['iso', 'backup']);
    is_deeply([map { $_->{volid} } @$volumes], ["s1:$backup"], 'of one guest');
    is_deeply(($core->requests())[-1]->{args}, { content => ['backup'], vmid => 100 }, 'asked so');
    is_deeply($plugin->list_volumes('s1', $scfg, undef, ['images']), [], 'no disks');
    is_deeply($plugin->list_images('s1', $scfg), [], 'none');
    $core->listen({ list => error('unavailable', 'connection refused') });
    refuses(qr/\Astorage 's1': connection refused\n/, 'no listing is an error, never an empty list', sub {
        $plugin->list_volumes('s1', $scfg, undef, ['backup']);
    });
};

subtest 'activate_volume' => sub {
    my $local = "$state/s1/cache/template/iso/a.iso";
    my $use = sub { return $plugin->activate_volume('s1', $scfg, 'iso/a.iso') };
    my @warnings;
    local $SIG{__WARN__} = sub { push @warnings, @_ };

    $core->listen({
        ping => answer({}),
        fetch => sub { write_file($local, 'x'); return ({ log => 'fetching a.iso: 5 of 9 MiB' }, { result => { path => $local } }) },
    });
    my $log = '';
    {
        open(my $fh, '>', \$log) or die;
        my $before = select($fh);
        $use->();
        select($before);
    }
    is($log, "fetching a.iso: 5 of 9 MiB\n", 'fetched, with progress in the task log');

    for my $case (['no service', undef], ['store away', error('unavailable', 'refused')], ['hung', $hung]) {
        my ($name, $answer) = @$case;
        $answer ? $core->listen({ ping => $name eq 'hung' ? $hung : answer({}), fetch => $answer }) : $core->stop();
        @warnings = ();
        ok(within(4, $name, sub { eval { $use->() } }), "$name: the local copy serves") or diag($@);
        like($warnings[0] // '', qr/\Ausing the local copy of s1:iso\/a.iso: /, "$name: the log says so");
        ok($plugin->volume_size_info($scfg, 's1', 'iso/a.iso', 1) == 1, "$name: its size") if $name ne 'store away';
    }
    $core->listen({ ping => answer({}), fetch => error('not-found', 'there is no iso/a.iso') });
    refuses(qr/there is no iso/, 'deleted in the bucket: the local copy does not serve', $use);
    unlink $local;
    $core->listen({ ping => answer({}), fetch => error('unavailable', 'connection refused') });
    refuses(qr/\Astorage 's1': connection refused\n/, 'no copy, no store', $use);
    $core->stop();
    refuses(qr/does not run on this node/, 'no copy, no service', $use);
    $core->listen({ ping => answer({}), fetch => answer({ path => '/elsewhere/a.iso' }) });
    refuses(qr/keeps local copies at/, 'a service with another state_dir', $use);

    $core->listen({ ping => answer({}), fetch => error('refused', 'no room'), size => answer({ size => 1 }) });
    ok($plugin->activate_volume('s1', $scfg, 'import/big.qcow2'), 'an import without room is read from the mount');
    refuses(qr/no room/, 'an ISO image without room is not', $use);
    is((grep { $_->{method} eq 'fetch' } $core->requests())[0]->{args}->{volname}, 'import/big.qcow2', 'asked');
    $plugin->activate_volume('s1', $scfg, 'import/a.ova/disk.vmdk');
    is(($core->requests())[-1]->{args}->{volname}, 'import/a.ova', 'a disk in an OVA is the OVA');

    ok($plugin->activate_volume('s1', $scfg, $backup), 'a backup on the mount');
    mounted(0);
    refuses(qr/is not mounted at .* \(see 'systemctl status bucketworks-mount\@s1'\)/, 'a backup without the mount', sub {
        $plugin->activate_volume('s1', $scfg, $backup);
    });
    mounted(1);
    $core->listen({ size => error('archived', 'thaw it first') });
    refuses(qr/thaw it first/, 'an archived backup', sub { $plugin->activate_volume('s1', $scfg, $backup) });
    $core->stop();
    ok($plugin->activate_volume('s1', $scfg, $backup), 'a backup without the service: the mount knows');
};

subtest 'volume_size_info' => sub {
    $core->listen({ size => answer({ size => 1234, format => 'iso', ctime => 99 }) });
    is_deeply([$plugin->volume_size_info($scfg, 's1', 'iso/b.iso')], [1234, 'raw', 1234, undef, 99], 'as a list');
    is(scalar($plugin->volume_size_info($scfg, 's1', $backup)), 1234, 'as a number');
    $core->listen({ size => error('not-found', 'no such volume') });
    refuses(qr/no such volume/, 'none', sub { $plugin->volume_size_info($scfg, 's1', 'iso/b.iso') });
    $core->listen({ size => $hung });
    within(3, 'hung', sub {
        refuses(qr/did not answer 'size' within 1 s/, 'the caller\'s timeout', sub {
            $plugin->volume_size_info($scfg, 's1', $backup, 1);
        });
    });
};

subtest 'notes and protection' => sub {
    $core->listen({
        attribute_get => sub { return { result => { value => $_[1]->{args}->{name} eq 'notes' ? "a\nb" : JSON::true() } } },
        attribute_set => answer({}),
    });
    is($plugin->get_volume_attribute($scfg, 's1', $backup, 'notes'), "a\nb", 'notes');
    is($plugin->get_volume_attribute($scfg, 's1', $backup, 'protected'), 1, 'protected');
    is($plugin->get_volume_attribute($scfg, 's1', 'iso/a.iso', 'notes'), undef, 'not of an ISO image');
    is($plugin->get_volume_attribute($scfg, 's1', $backup, 'colour'), undef, 'no others');
    $plugin->update_volume_attribute($scfg, 's1', $backup, 'notes', "c\nd");
    is_deeply(($core->requests())[-1]->{args}, { volname => $backup, name => 'notes', value => "c\nd" }, 'set notes');
    $plugin->update_volume_attribute($scfg, 's1', $backup, 'protected', undef);
    is(($core->requests())[-1]->{args}->{value}, 0, 'unprotect');
    refuses(qr/only backups/, 'not of an ISO image', sub {
        $plugin->update_volume_attribute($scfg, 's1', 'iso/a.iso', 'notes', 'x');
    });
    refuses(qr/not supported/, 'no others', sub { $plugin->update_volume_attribute($scfg, 's1', $backup, 'x', 1) });
};

subtest 'free_image' => sub {
    $core->listen({ free => answer({}) });
    is($plugin->free_image('s1', $scfg, $backup, 0, 'raw'), undef, 'done, no worker');
    is_deeply(($core->requests())[-1]->{args}, { volname => $backup }, 'the service deletes');
    $core->listen({ free => error('refused', 'is protected') });
    refuses(qr/\Astorage 's1': is protected\n/, 'protected', sub { $plugin->free_image('s1', $scfg, $backup, 0, 'raw') });
};

subtest 'prune_backups' => sub {
    my $name = sub { return sprintf('backup/vzdump-qemu-100-2026_01_%02d-00_00_00.vma.zst', $_[0]) };
    my @told = map { { volname => $name->($_), content => 'backup', format => 'vma.zst', size => 1, ctime => $_, vmid => 100, subtype => 'qemu' } } 1 .. 5;
    $told[0]->{protected} = 1;
    push @told, { volname => 'backup/renamed.vma', content => 'backup', format => 'vma', size => 1, ctime => 1 };
    my $list = answer({ volumes => \@told });
    my (@log, @freed);
    my $prune = sub {
        my ($dryrun) = @_;
        @log = ();
        my $result = $plugin->prune_backups(
            $scfg, 's1', { 'keep-last' => 2 }, undef, 'qemu', $dryrun, sub { push @log, join(': ', @_) },
        );
        @freed = map { $_->{args}->{volname} } grep { $_->{method} eq 'free' } $core->requests();
        return { map { $_->{volid} => $_->{mark} } @$result };
    };

    $core->listen({ list => $list, free => answer({}) });
    my $marks = $prune->(1);
    is_deeply(
        $marks,
        { map { 's1:' . $name->($_) => $_ == 1 ? 'protected' : $_ < 4 ? 'remove' : 'keep' } 1 .. 5 },
        'marks of a dry run',
    );
    is_deeply(\@freed, [], 'which removes nothing');
    $prune->(0);
    is_deeply([sort @freed], [$name->(2), $name->(3)], 'the others are deleted in the bucket');
    is_deeply([map { $_->[1] } @PVE::Storage::Plugin::called], [1, 1], 'the base class only ever marks');

    $core->listen({
        list => $list,
        free => sub {
            return { error => { code => 'refused', message => 'locked until 2027-01-01' } } if $_[1]->{args}->{volname} eq $name->(2);
            return { error => { code => 'not-found', message => 'gone' } };
        },
    });
    $marks = $prune->(0);
    is($marks->{ 's1:' . $name->(2) }, 'protected', 'what the store holds locked stays');
    ok((grep { m/\Awarn: keeping backup .* locked until 2027-01-01\z/ } @log), 'and the log says until when') or diag(@log);

    $core->listen({ list => $list, free => error('unavailable', 'connection refused') });
    refuses(qr/error pruning backups - check log/, 'a failure', sub { $prune->(0) });
    @freed = map { $_->{args}->{volname} } grep { $_->{method} eq 'free' } $core->requests();
    is(scalar(@freed), 2, 'after all have been tried');
};

subtest 'streams' => sub {
    my $local = "$state/s1/cache/template/iso/a.iso";
    my $bytes = join('', map { chr($_ % 256) } 1 .. 5000) x 500;
    write_file($local, $bytes);
    File::Path::make_path("$mount/template/iso");
    $core->listen({ ping => answer({}), fetch => answer({ path => $local }) });
    is_deeply([$plugin->volume_export_formats($scfg, 's1', 'iso/a.iso')], ['raw+size'], 'a file is exported');
    is_deeply([$plugin->volume_import_formats($scfg, 's1', 'iso/a.iso')], ['raw+size'], 'and imported');
    is_deeply([$plugin->volume_export_formats($scfg, 's1', $backup)], [], 'backups are not');
    is_deeply([$plugin->volume_export_formats($scfg, 's1', 'iso/a.iso', 'snap')], [], 'nor snapshots');

    open(my $out, '>:raw', "$root/stream") or die;
    $plugin->volume_export($scfg, 's1', $out, 'iso/a.iso', 'raw+size');
    close($out);
    is(-s "$root/stream", 8 + length($bytes), 'exported from the local copy');
    is(($core->requests())[-1]->{method}, 'fetch', 'which is fetched');

    my $import = sub {
        open(my $in, '<:raw', "$root/stream") or die;
        return $plugin->volume_import($scfg, 's1', $in, 'iso/b.iso', 'raw+size');
    };
    is($import->(), 's1:iso/b.iso', 'imported');
    is(-s "$mount/template/iso/b.iso", length($bytes), 'to the mount');
    refuses(qr/cannot create .*: File exists/, 'nothing is overwritten', $import);
    unlink "$mount/template/iso/b.iso";
    truncate("$root/stream", 100_000);
    refuses(qr/the stream ended after 99992 of 2500000 bytes/, 'half a stream', $import);
    ok(!-e "$mount/template/iso/b.iso", 'leaves nothing');
    refuses(qr/exports no/, 'a format that is none', sub {
        $plugin->volume_export($scfg, 's1', undef, 'iso/a.iso', 'qcow2+size');
    });
    unlink $local;
    $core->listen({ size => answer({ size => 1 }) });
    is($plugin->get_import_metadata($scfg, 'import/b.ova', 's1')->{read}, "$mount/import/b.ova", 'an OVA is read through the mount');
};

subtest 'the rest' => sub {
    for my $method (qw(
        alloc_image clone_image create_base rename_volume rename_snapshot volume_resize volume_snapshot
        volume_snapshot_rollback volume_snapshot_delete volume_rollback_is_possible
    )) {
        refuses(qr/\Astorage type bucketfiles holds files, not disks: no $method/, $method, sub { $plugin->$method() });
    }
    is($plugin->volume_has_feature($scfg, 'copy', 's1', 'iso/a.iso'), undef, 'no feature');
    is_deeply($plugin->volume_snapshot_info(), {}, 'no snapshots');
    $core->listen({ identity => answer({ identity => 'u-u-i-d' }), deactivate => answer({}) });
    is($plugin->get_identity($scfg, 's1'), 'u-u-i-d', 'identity');
    ok($plugin->deactivate_storage('s1', $scfg), 'deactivate_storage');
    is(($core->requests())[-1]->{method}, 'deactivate', 'takes the mount away');
    ok($plugin->deactivate_volume('s1', $scfg, 'iso/a.iso'), 'deactivate_volume');
    is(PVE::Bucketworks::Node::setting('run_dir'), "$root/run", 'settings come from [pve] of config.toml');
};

done_testing();
