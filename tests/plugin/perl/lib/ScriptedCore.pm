# SPDX-License-Identifier: AGPL-3.0-or-later
package ScriptedCore;

# A Bucketworks service that says what a test tells it to: a child process behind a Unix socket. Each request is kept,
# so that a test can look at what the plugin asked.
#
#   my $core = ScriptedCore->start({ ping => sub { my ($core, $request, $socket) = @_; return { result => {} } } });
#
# A handler returns the answer without its id, a list of answers, or nothing when it has written to the socket itself.

use strict;
use warnings;

use File::Temp ();
use IO::Socket::UNIX;
use JSON ();
use Socket qw(SOCK_STREAM);
use Time::HiRes ();

sub start {
    my ($class, $handlers) = @_;

    my $dir = File::Temp->newdir('bw-XXXXXX', TMPDIR => 1);
    my ($path) = ("$dir" =~ m{\A(/[\w./+-]+)\z}) or die "odd temporary directory $dir\n";
    my $self = bless { dir => $dir, socket => "$path/pve.sock", requests => "$path/requests", pid => 0 }, $class;
    $self->listen($handlers);
    $ENV{BUCKETWORKS_PVE_SOCKET} = $self->{socket};
    return $self;
}

# Replace what the core says.
sub listen { ## no critic (a server's word)
    my ($self, $handlers) = @_;

    $self->stop();
    unlink $self->{requests};
    my $server = IO::Socket::UNIX->new(Local => $self->{socket}, Type => SOCK_STREAM, Listen => 16)
        or die "cannot listen on $self->{socket}: $!\n";
    my $pid = fork() // die "fork: $!\n";
    if ($pid) {
        $self->{pid} = $pid;
        return $self;
    }
    local $SIG{PIPE} = 'IGNORE';
    while (my $socket = $server->accept()) {
        my $line = <$socket> // next;
        open(my $log, '>>', $self->{requests}) or die;
        print {$log} $line;
        close($log);
        my $request = JSON::decode_json($line);
        my $handler = $handlers->{ $request->{method} } // $handlers->{'*'};
        my @answers =
            $handler
            ? $handler->($self, $request, $socket)
            : { error => { code => 'unsupported', message => "no '$request->{method}' here" } };
        for my $answer (@answers) {
            print {$socket} JSON::encode_json({ id => $request->{id}, %$answer }), "\n" or last;
            $socket->flush();
        }
        close($socket);
    }
    POSIX::_exit(0);
}

# What was asked, oldest first.
sub requests {
    my ($self) = @_;
    my @requests;
    if (open(my $log, '<', $self->{requests})) {
        @requests = map { JSON::decode_json($_) } <$log>;
    }
    return @requests;
}

sub stop {
    my ($self) = @_;
    if (my $pid = $self->{pid}) {
        kill 'KILL', $pid;
        waitpid($pid, 0);
        $self->{pid} = 0;
    }
    unlink $self->{socket};
    return;
}

sub DESTROY {
    my ($self) = @_;
    local ($@, $!, $?);
    $self->stop() if $self->{pid};
    return;
}

require POSIX;

1;
