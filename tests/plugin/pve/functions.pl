#!/usr/bin/perl -T
# SPDX-License-Identifier: AGPL-3.0-or-later
# Functions of the real PVE::Storage, as qemu-server and pve-container call them, in taint mode. One JSON list a line:
# [name, arguments after the configuration ...]; the answer is {"result":[...]} or {"error":"..."}.
use strict;
use warnings;

use File::Basename ();
use lib ();

BEGIN {
    my ($here) = (File::Basename::dirname(__FILE__) =~ m{\A(/.*)\z});
    lib->import("$here/lib");
}
use PveCheckout;

use JSON ();

require PVE::Storage;
require PVE::RPCEnvironment;
PVE::RPCEnvironment->setup_default_cli_env() if PVE::RPCEnvironment->can('setup_default_cli_env');

$ENV{PATH} = '/usr/sbin:/usr/bin:/sbin:/bin';
delete @ENV{qw(IFS CDPATH ENV BASH_ENV)};

# What functions print belongs to no answer.
open(my $out, '>&', \*STDOUT) or die;
open(STDOUT, '>&', \*STDERR) or die;
$out->autoflush(1);
while (my $line = <STDIN>) {
    my ($name, @arguments) = @{ JSON::decode_json($line) };
    my $answer = eval {
        PVE::Cluster::cfs_update();
        my $code = PVE::Storage->can($name) // die "no PVE::Storage::$name\n";
        my @result = $code->(PVE::Storage::config(), @arguments);
        { result => \@result };
    } // { error => "$@" };
    print {$out} JSON->new->utf8->allow_blessed->allow_nonref->encode($answer), "\n";
}
