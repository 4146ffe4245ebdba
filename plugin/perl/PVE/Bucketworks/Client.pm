# SPDX-License-Identifier: AGPL-3.0-or-later
package PVE::Bucketworks::Client;

# One call to the Bucketworks service of this node, over its Unix socket.
#
# A request is one JSON object on one line, an answer is any number of progress lines and then one result or one error
# (plugin/protocol.py describes them). Each call opens a connection of its own, because PVE's workers fork.
#
# One rule: a call ends within its time, whatever the service does. The time is kept with SO_RCVTIMEO and SO_SNDTIMEO,
# never with alarm(), which PVE uses around us (run_with_timeout, the cluster lock's 60 s).
#
# What comes back is untainted: only root can bind or open the socket (0600 in a directory of root's), so its word is
# taken. A path still goes through PVE::Bucketworks::Node::absolute_path() before it is opened.

use strict;
use warnings;

use Encode ();
use Errno qw(EAGAIN ECONNREFUSED EINTR ENOENT EPIPE ECONNRESET EACCES);
use JSON ();
use Scalar::Util ();
use Socket qw(AF_UNIX MSG_NOSIGNAL SOCK_STREAM SOL_SOCKET SO_RCVTIMEO SO_SNDTIMEO pack_sockaddr_un);
use Time::HiRes ();

use PVE::Bucketworks::Node;

use constant {
    PROTOCOL => 1,
    ANSWER_BYTES_MAX => 64 * 1024 * 1024, # 100,000 volumes are about 20 MiB
    DEFAULT_SECONDS => 10,
};

my $count = 0;

# Where the service listens. Tests and the harness set BUCKETWORKS_PVE_SOCKET.
sub socket_path {
    my $path = $ENV{BUCKETWORKS_PVE_SOCKET} // PVE::Bucketworks::Node::setting('run_dir') . '/pve.sock';
    $path =~ m{\A(/[^\0\n]{1,106})\z}
        or die "the service's socket is not at an absolute path of at most 107 bytes: $path\n";
    return $1;
}

# call($storeid, $method, \%args, %options) -> the result.
#
# Dies with one line, message and hint, when there is an error. Options:
#   seconds  time for the whole call (default 10);
#   silence  instead of seconds: no limit for the call, but the longest time without any line from the service. For
#            fetches: the service sends a line at least each 10 s while it works;
#   log      code that gets each progress line. Without it the lines are printed, which in a task is the task's log.
sub call {
    my ($storeid, $method, $args, %options) = @_;

    my ($result, $error) = ask($storeid, $method, $args, %options);
    die error_text($storeid, $error) if $error;
    return $result;
}

# As call(), but never dies for what the service says or fails to say: returns ($result, $error), $error being undef or
# { code, message, hint, retryable } with the codes of plugin/protocol.py.
sub ask {
    my ($storeid, $method, $args, %options) = @_;

    my $result = eval { _exchange($storeid, $method, $args, \%options) };
    my $failure = $@;
    return ($result, undef) if $failure eq '';
    return (undef, $failure) if ref($failure) eq 'HASH';
    die $failure; # a signal handler's die (a task that is stopped), or a mistake of ours
}

# "storage 'x': message (hint)\n": one line, as PVE shows it in task lists.
sub error_text {
    my ($storeid, $error) = @_;

    my $text = "storage '$storeid': " . _one_line($error->{message});
    my $hint = _one_line($error->{hint});
    $text .= " ($hint)" if $hint ne '';
    utf8::encode($text) if utf8::is_utf8($text); # PVE writes it to logs as bytes
    return "$text\n";
}

sub _failure {
    my ($code, $message, $hint) = @_;
    return { code => $code, message => $message, hint => $hint // '', retryable => $code ne 'bug' ? 1 : 0 };
}

sub _exchange {
    my ($storeid, $method, $args, $options) = @_;

    my $silence = $options->{silence};
    my $seconds = $silence // $options->{seconds} // DEFAULT_SECONDS;
    my $end = _now() + $seconds;
    my $id = "$$-" . ++$count;

    my $request = {
        v => PROTOCOL,
        id => $id,
        method => $method,
        storage => _text($storeid),
        args => _texts($args // {}),
    };
    # The service gives up a little before we do, so that it is the one to say why.
    $request->{deadline_ms} = defined($silence) ? 0 : int($seconds * 900);

    my $socket = _connect($end);
    _send($socket, $end, JSON->new->utf8->canonical->encode($request) . "\n");

    my $buffer = '';
    while (1) {
        my $line = _read_line($socket, $end, \$buffer, $method, $seconds);
        my $answer = eval { JSON->new->utf8->max_depth(32)->decode($line) };
        die _failure('bug', "the Bucketworks service sent something that is no answer to '$method'", _restart_hint())
            if ref($answer) ne 'HASH' || !defined($answer->{id}) || ref($answer->{id}) || $answer->{id} ne $id;

        if (ref($answer->{error}) eq 'HASH') {
            my $error = _plain($answer->{error});
            $error->{code} = 'bug' if ref($error->{code}) || ($error->{code} // '') eq '';
            $error->{message} = "'$method' failed without a message"
                if ref($error->{message}) || ($error->{message} // '') eq '';
            $error->{hint} = '' if ref($error->{hint}) || !defined($error->{hint});
            die $error;
        } elsif (exists($answer->{result})) {
            return _plain($answer->{result});
        } elsif (exists($answer->{log})) {
            _log($options->{log}, $answer->{log});
            $end = _now() + $seconds if defined($silence);
        } else {
            die _failure('bug', "the Bucketworks service sent neither result nor error to '$method'", _restart_hint());
        }
    }
}

sub _connect {
    my ($end) = @_;

    my $path = socket_path();
    socket(my $socket, AF_UNIX, SOCK_STREAM, 0) or die _failure('unavailable', "no socket: $!");
    # A connect waits for a place in the listener's queue; SO_SNDTIMEO bounds that too (unix(7)).
    while (1) {
        _timeout($socket, SO_SNDTIMEO, $end) or die _hung('connection');
        return $socket if connect($socket, pack_sockaddr_un($path));
        next if $! == EINTR;
        die _hung('connection') if $! == EAGAIN;
        last;
    }
    my $reason = "$!";
    die _failure('unavailable', 'the Bucketworks service does not run on this node', _restart_hint())
        if $! == ECONNREFUSED || $! == ENOENT;
    die _failure('denied', "may not open $path", 'only root may') if $! == EACCES;
    die _failure('unavailable', "cannot connect to $path: $reason", _restart_hint());
}

sub _send {
    my ($socket, $end, $bytes) = @_;

    my $sent = 0;
    while ($sent < length($bytes)) {
        _timeout($socket, SO_SNDTIMEO, $end) or die _hung('request');
        my $count = send($socket, substr($bytes, $sent), MSG_NOSIGNAL);
        if (defined($count)) {
            $sent += $count;
        } elsif ($! == EAGAIN) {
            die _hung('request');
        } elsif ($! != EINTR) {
            die _broken("$!");
        }
    }
    return;
}

# One line without its end, untainted.
sub _read_line {
    my ($socket, $end, $buffer, $method, $seconds) = @_;

    my $searched = 0;
    while (1) {
        my $at = index($$buffer, "\n", $searched);
        if ($at >= 0) {
            my ($line) = (substr($$buffer, 0, $at) =~ m/\A(.*)\z/s);
            $$buffer = substr($$buffer, $at + 1);
            return $line;
        }
        $searched = length($$buffer);
        die _failure('bug', "the Bucketworks service sent more than " . ANSWER_BYTES_MAX . " bytes to '$method'",
            _restart_hint())
            if $searched > ANSWER_BYTES_MAX;

        _timeout($socket, SO_RCVTIMEO, $end) or die _hung("'$method'", $seconds);
        my $count = sysread($socket, $$buffer, 256 * 1024, $searched);
        if (!defined($count)) {
            die _hung("'$method'", $seconds) if $! == EAGAIN;
            die _broken("$!") if $! != EINTR;
        } elsif ($count == 0) {
            die _broken('it closed the connection');
        }
    }
}

# Set what is left until $end as the socket's time; false if nothing is left.
sub _timeout {
    my ($socket, $option, $end) = @_;

    my $left = $end - _now();
    return 0 if $left <= 0;
    my $whole = int($left);
    my $micro = int(($left - $whole) * 1_000_000);
    $micro = 1000 if $whole == 0 && $micro < 1000; # zero would mean: wait for ever
    setsockopt($socket, SOL_SOCKET, $option, pack('l!l!', $whole, $micro))
        or die _failure('bug', "cannot set the socket's timeout: $!");
    return 1;
}

sub _now { return Time::HiRes::clock_gettime(Time::HiRes::CLOCK_MONOTONIC()) }

sub _hung {
    my ($what, $seconds) = @_;
    my $text = defined($seconds) ? sprintf(' within %.3g s', $seconds) : '';
    return _failure('deadline', "the Bucketworks service did not answer $what$text", _restart_hint());
}

sub _broken {
    my ($reason) = @_;
    return _failure('unavailable', "lost the Bucketworks service in the middle of a call: $reason", _restart_hint());
}

sub _restart_hint { return "see 'systemctl status bucketworks-pve' and 'journalctl -u bucketworks-pve'" }

sub _log {
    my ($code, $text) = @_;

    $text = _one_line($text);
    return if $text eq ''; # a heartbeat
    utf8::encode($text) if utf8::is_utf8($text);
    return $code->($text) if $code;
    local $| = 1;
    print "$text\n";
    return;
}

sub _one_line {
    my ($text) = @_;
    $text = '' if !defined($text) || ref($text);
    $text =~ s/[\x00-\x1f\x7f]+/ /g;
    $text =~ s/\A\s+|\s+\z//g;
    return $text;
}

# Names reach us as bytes (pvesm, directory listings) or as characters (REST): bytes that are UTF-8 are taken as that.
sub _text {
    my ($value) = @_;
    return $value if !defined($value) || utf8::is_utf8($value) || $value !~ m/[\x80-\xff]/;
    my $copy = $value;
    my $decoded = eval { Encode::decode('UTF-8', $copy, Encode::FB_CROAK) };
    return $decoded // $value;
}

sub _texts {
    my ($value) = @_;
    return { map { $_ => _texts($value->{$_}) } keys %$value } if ref($value) eq 'HASH';
    return [map { _texts($_) } @$value] if ref($value) eq 'ARRAY';
    return $value if !defined($value) || ref($value);
    return $value if Scalar::Util::looks_like_number($value); # a match would make it a string for JSON::XS
    return _text($value);
}

# JSON's true and false become 1 and 0, which PVE's schema checks know.
sub _plain {
    my ($value) = @_;
    return { map { $_ => _plain($value->{$_}) } keys %$value } if ref($value) eq 'HASH';
    return [map { _plain($_) } @$value] if ref($value) eq 'ARRAY';
    return $value ? 1 : 0 if Scalar::Util::blessed($value);
    return $value;
}

1;
