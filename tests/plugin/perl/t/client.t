#!/usr/bin/perl -T
# SPDX-License-Identifier: AGPL-3.0-or-later
# The client ends within its time whatever the service does, says it in one line, and hands back clean data.
use strict;
use warnings;
use utf8;

use Scalar::Util qw(tainted);
use Test::More;
use Time::HiRes qw(time sleep);

use ScriptedCore;
use PVE::Bucketworks::Client;

my $core = ScriptedCore->start({});

sub call { return PVE::Bucketworks::Client::call('s', @_) }

sub fails {
    my ($pattern, $limit, $name, @call) = @_;
    my $begin = time();
    my $result = eval { call(@call) };
    my $error = $@;
    my $took = time() - $begin;
    like($error, $pattern, $name);
    is(($error =~ tr/\n//), 1, "$name: one line");
    ok($took < $limit, "$name: within $limit s") or diag("took $took s");
    return;
}

subtest 'an answer' => sub {
    $core->listen({
        echo => sub {
            my ($self, $request) = @_;
            return { result => { %{ $request->{args} }, request => { map { $_ => $request->{$_} } qw(v storage) } } };
        },
    });
    my $tainted = substr($ENV{PATH}, 0, 0);
    my $got = call(
        'echo',
        {
            text => "a$tainted", number => 5, yes => JSON::true(), no => JSON::false(), none => undef,
            list => [1, { x => JSON::true() }], bytes => "caf\xc3\xa9", characters => "café",
        },
    );
    is($got->{text}, 'a', 'text');
    ok(!tainted($got->{text}), 'what comes back is not tainted');
    ok(!ref($got->{yes}) && $got->{yes} eq '1', 'true is 1');
    ok(!ref($got->{no}) && $got->{no} eq '0', 'false is 0');
    is($got->{none}, undef, 'null is undef');
    is_deeply($got->{list}, [1, { x => 1 }], 'a list');
    is($got->{bytes}, 'café', 'UTF-8 bytes go out as characters');
    is($got->{characters}, 'café', 'characters as characters');
    is_deeply($got->{request}, { v => 1, storage => 's' }, 'version and storage');
    is(JSON->new->canonical->encode([$got->{number}]), '[5]', 'a number stays one');
    my ($request) = $core->requests();
    is($request->{deadline_ms}, 9000, 'the service is told to give up first');
};

subtest 'progress' => sub {
    $core->listen({
        fetch => sub { return ({ log => '10 %' }, { log => '' }, { log => "20 %\n\tok" }, { result => 1 }) },
    });
    my @lines;
    is(call('fetch', {}, silence => 5, log => sub { push @lines, @_ }), 1, 'the result after the lines');
    is_deeply(\@lines, ['10 %', '20 % ok'], 'each line once, heartbeats not');
    is(($core->requests())[0]->{deadline_ms}, 0, 'no deadline for a call bounded by silence');

    my $printed = '';
    {
        open(my $fh, '>', \$printed) or die;
        my $old = select($fh);
        call('fetch', {}, silence => 5);
        select($old);
    }
    is($printed, "10 %\n20 % ok\n", 'printed to the task log by itself');
};

subtest 'a long call that works goes on, a silent one ends' => sub {
    $core->listen({
        long => sub {
            my ($self, $request, $socket) = @_;
            for (1 .. 6) {
                sleep(0.3);
                print {$socket} JSON::encode_json({ id => $request->{id}, log => '' }), "\n";
                $socket->flush();
            }
            return { result => 'done' };
        },
        silent => sub { sleep(30); return },
    });
    is(call('long', {}, silence => 1), 'done', '1.8 s with a line each 0.3 s and 1 s of patience');
    fails(qr/^storage 's': .*did not answer 'silent' within 1 s/, 5, 'silence', 'silent', {}, silence => 1);
};

subtest 'errors of the service' => sub {
    $core->listen({
        denied => sub {
            return {
                error => { code => 'denied', message => "403\nAccessDenied", hint => 'check the key', retryable => JSON::false() },
            };
        },
        mute => sub { return { error => {} } },
        odd => sub { return { error => 'text' } },
    });
    fails(qr/\Astorage 's': 403 AccessDenied \(check the key\)\n\z/, 2, 'message and hint', 'denied', {});
    fails(qr/'mute' failed without a message/, 2, 'an empty error', 'mute', {});
    fails(qr/neither result nor error/, 2, 'an error that is no object', 'odd', {});
    my ($result, $error) = PVE::Bucketworks::Client::ask('s', 'denied', {});
    is($error->{code}, 'denied', 'ask() hands out the code');
    is($error->{retryable}, 0, 'as plain values');
};

subtest 'a service that is hung, dead, slow or talks nonsense' => sub {
    $core->listen({
        hung => sub { sleep(30); return },
        drip => sub { my ($self, $r, $socket) = @_; while (1) { sleep(0.2); syswrite($socket, ' ') or last } return },
    });
    for my $method (qw(hung drip)) {
        fails(qr/did not answer '$method' within 1 s \(see 'systemctl/, 4, $method, $method, {}, seconds => 1);
    }
    $core->listen({
        garbage => sub { my ($self, $r, $socket) = @_; print {$socket} "\x00\xffnot json\n"; return },
        list => sub { my ($self, $r, $socket) = @_; print {$socket} "[1]\n"; return },
        other => sub { return { id => 'else', result => 1 } },
        deep => sub { my ($self, $r, $socket) = @_; print {$socket} '[' x 100_000, "\n"; return },
        half => sub { my ($self, $r, $socket) = @_; print {$socket} '{"id":"'; return },
        closed => sub { return },
        huge => sub {
            my ($self, $r, $socket) = @_;
            my $block = 'x' x (1024 * 1024);
            for (1 .. 80) { print {$socket} $block or last }
            return;
        },
        volumes => sub { return { result => [map { { volname => "iso/$_.iso" } } 1 .. 100_000] } },
    });
    fails(qr/something that is no answer to '$_'/, 4, $_, $_, {}) for qw(garbage list other deep);
    fails(qr/in the middle of a call: it closed the connection/, 4, $_, $_, {}) for qw(half closed);
    fails(qr/more than 67108864 bytes/, 60, 'huge', 'huge', {}, seconds => 60);
    is(scalar(@{ call('volumes', {}, seconds => 60) }), 100_000, '100,000 volumes are no trouble');
};

subtest 'no service' => sub {
    $core->stop();
    fails(qr/does not run on this node \(see 'systemctl status bucketworks-pve'/, 1, 'no socket', 'ping', {});

    my $deaf = IO::Socket::UNIX->new(Local => $core->{socket}, Type => Socket::SOCK_STREAM(), Listen => 1) or die;
    my @waiting = map { IO::Socket::UNIX->new(Peer => $core->{socket}) } 1 .. 2; # the listener's queue is full
    fails(qr/did not answer connection/, 4, 'nobody accepts', 'ping', {}, seconds => 1);
    close($deaf);
    fails(qr/does not run on this node/, 1, 'a socket without a listener', 'ping', {});
};

subtest 'an alarm of the caller stays his' => sub {
    $core->listen({ hung => sub { sleep(30); return } });
    my $begin = time();
    eval {
        local $SIG{ALRM} = sub { die "the cluster lock's time is over\n" };
        alarm(1);
        call('hung', {}, seconds => 20);
    };
    like($@, qr/\Athe cluster lock's time is over\n\z/, 'his die comes through');
    ok(time() - $begin < 10, 'at his time');
};

subtest 'signals that do not die are waited through' => sub {
    $core->listen({ slow => sub { sleep(1.5); return { result => 'x' } } });
    local $SIG{ALRM} = sub { };
    Time::HiRes::ualarm(200_000, 200_000);
    is(call('slow', {}), 'x', 'the answer comes');
    Time::HiRes::ualarm(0);
};

subtest 'paths' => sub {
    my $tainted = substr($ENV{PATH}, 0, 0);
    my $path = PVE::Bucketworks::Node::absolute_path("/a/b ü$tainted");
    ok(!tainted($path), 'untainted');
    is($path, "/a/b \xc3\xbc", 'bytes');
    for my $bad (undef, '', 'a', '/a/../b', '/..', "/a\0b", "/a\nb", []) {
        eval { PVE::Bucketworks::Node::absolute_path($bad) };
        like($@, qr/not an absolute path/, 'refused: ' . ($bad // 'undef'));
    }
    is(PVE::Bucketworks::Node::absolute_path('/a/..b'), '/a/..b', 'two dots in a name are a name');
};

done_testing();
