#!/usr/bin/perl -T
# SPDX-License-Identifier: AGPL-3.0-or-later
# The REST handlers of storages, called in taint mode as pvedaemon does.
#
# Reads one JSON object a line, {"method","path","params"}, and answers each with one, {"data"} or {"error"}, and "output":
# what the call printed, the log of its tasks included. Each call runs in a child of its own, as in a worker of pvedaemon.
# The first line that it writes is {"ready":1,"output":...}: what loading PVE::Storage printed.
use strict;
use warnings;

use lib ();
use File::Basename ();
use File::Temp ();
use JSON ();

BEGIN {
    $ENV{PATH} = '/usr/sbin:/usr/bin:/sbin:/bin';
    delete @ENV{qw(IFS CDPATH ENV BASH_ENV)};
    my ($here) = (File::Basename::dirname(__FILE__) =~ m{\A(.*)\z});
    lib->import("$here/lib");
}
use PveCheckout;

my $json = JSON->new->utf8->canonical->allow_nonref->allow_blessed->convert_blessed;
open(my $answers, '>&', \*STDOUT) or die "stdout: $!\n";
$answers->autoflush(1);

# What $code prints, the programs that it starts included, and what it returns or dies with.
sub captured {
    my ($code) = @_;

    my $file = File::Temp->new();
    open(my $out, '>&', \*STDOUT) or die;
    open(my $err, '>&', \*STDERR) or die;
    open(STDOUT, '>>', $file->filename) or die;
    open(STDERR, '>>', $file->filename) or die;
    my $result = eval { $code->() };
    my $error = $@;
    STDOUT->flush();
    open(STDOUT, '>&', $out) or die;
    open(STDERR, '>&', $err) or die;
    my $output = do { local $/; <$file> };
    return ($result, $error, $output // '');
}

my (undef, $failed, $output) = captured(sub {
    for my $module (qw(
        JSON PVE::RPCEnvironment PVE::Cluster PVE::INotify PVE::Storage PVE::API2::Storage::Config
        PVE::API2::Storage::Status PVE::API2::Storage::Content PVE::API2::Storage::PruneBackups
    )) {
        (my $file = "$module.pm") =~ s{::}{/}g;
        require $file;
    }
    my $types = PVE::Storage::Plugin->lookup_types();
});
print {$answers} $json->encode($failed ? { error => "$failed", output => $output } : { ready => 1, output => $output }), "\n";
exit 1 if $failed;

sub handle {
    my ($method, $path, $params) = @_;

    my $environment = PVE::RPCEnvironment->init('cli'); # 'cli': tasks run here and print their log
    $environment->init_request();
    $environment->set_user('root@pam');
    PVE::Cluster::cfs_update();

    my ($class, $rest) =
          $path =~ m{\A/nodes/[^/]+/storage/?(.*)\z} ? ('PVE::API2::Storage::Status', $1)
        : $path =~ m{\A/storage/?(.*)\z} ? ('PVE::API2::Storage::Config', $1)
        : die "no handlers for $path here\n";
    $params->{node} = PVE::INotify::nodename() if $class =~ m/Status/;
    my ($handler, $info) = $class->find_handler($method, $rest, $params);
    die "no handler for $method $path\n" if !$info;
    return $handler->handle($info, $params);
}

while (my $line = <STDIN>) {
    my $request = $json->decode($line);
    my $pid = fork() // die "fork: $!\n";
    if (!$pid) {
        my ($data, $error, $printed) = captured(sub { return handle(@$request{qw(method path params)}) });
        my $answer = $error ? { error => "$error" } : { data => $data };
        if (ref($error) && $error->can('TO_JSON')) { $answer->{details} = $error->TO_JSON() }
        print {$answers} $json->encode({ %$answer, output => $printed }), "\n";
        $answers->flush();
        POSIX::_exit(0);
    }
    waitpid($pid, 0);
}
