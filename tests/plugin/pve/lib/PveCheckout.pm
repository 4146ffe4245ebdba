# SPDX-License-Identifier: AGPL-3.0-or-later
package PveCheckout;

# The real Perl code of Proxmox VE, taken from source checkouts, on a node that is a directory.
#
#   PVE_SRC    directory of checkouts (pve-storage, pve-common, pve-cluster, pve-access-control, ...) of one release
#   PVE_NODE   directory that stands for / of the node
#   PVE_PERL   plugin/perl of this project, and other such trees, with colons between
#
# use PveCheckout; comes before anything of PVE. An @INC hook hands perl the files of the checkouts, in which the paths
# that they have written out (/etc/pve and a few more) are put below PVE_NODE. Where PVE_NODE/proc/self/mounts is there, it is what
# the plugins take for the kernel's list of mounts. Five modules that are compiled code
# upstream stand beside this file. Nothing is installed, and /etc/pve is not there.

use strict;
use warnings;

use Cwd ();
use File::Basename ();
use File::Path ();

our ($SOURCE, $NODE);

sub _directory {
    my ($variable) = @_;
    my $path = Cwd::abs_path($ENV{$variable} // die "set $variable\n") // die "$variable: no such directory\n";
    $path =~ m{\A(/[\w./+-]+)\z} or die "$variable: odd letters in $path\n";
    return $1;
}

my (@stubs, @trees, @moved);

# In the source of others: /etc/pve and so on. Not where it is the tail of a longer path.
sub _moved {
    my ($text) = @_;
    $text =~ s{(?<![\w./-])\Q$_\E(?![\w-])}{$NODE$_}g for @moved;
    return $text;
}

sub _serve {
    my (undef, $name) = @_;

    $name =~ m{\A((?:PVE|Proxmox)/[\w/-]+\.pm)\z} or return;
    $name = $1;
    for my $tree (@stubs, @trees) {
        open(my $file, '<:raw', "$tree/$name") or next;
        my $text = do { local $/; <$file> };
        $text = _moved($text) if !grep { $_ eq $tree } @stubs;
        $text = "#line 1 \"$tree/$name\"\n$text";
        open(my $source, '<', \$text) or die "$name: $!\n";
        return $source;
    }
    return;
}

sub import {
    return if defined($NODE);
    ($SOURCE, $NODE) = (_directory('PVE_SRC'), _directory('PVE_NODE'));
    my ($here) = (Cwd::abs_path(File::Basename::dirname(__FILE__)) =~ m{\A(/.*)\z});
    my @plugins = map { m{\A(/[\w./+-]+)\z} ? $1 : die "PVE_PERL: odd letters in $_\n" } split(/:/, $ENV{PVE_PERL} // '');
    @stubs = ($here);
    @trees = (@plugins, map { "$SOURCE/$_/src" } qw(
        pve-storage pve-common pve-cluster pve-access-control pve-guest-common pve-apiclient
    ));
    @moved = qw(
        /usr/share/perl5/PVE/Storage/Custom /etc/pve /var/lib/pve-manager /var/lock/pve-manager /var/log/pve /var/lib/vz
        /run/pve
    );
    push @moved, '/proc/self/mounts' if -e "$NODE/proc/self/mounts";

    my ($name) = ((POSIX::uname())[1] =~ m/\A([\w-]+)/);
    File::Path::make_path(map { "$NODE/$_" } (
        "etc/pve/nodes/$name/qemu-server", "etc/pve/nodes/$name/lxc", 'etc/pve/priv/lock', 'etc/pve/priv/storage',
        'var/lib/pve-manager', 'var/lock/pve-manager', 'var/lib/vz', 'run/pve',
        (map { "var/log/pve/tasks/$_" } 0 .. 9, 'A' .. 'F'),
        'usr/share/perl5/PVE/Storage/Custom',
    ));
    # The loader lists this directory and then requires each name through @INC.
    for my $plugin (map { glob("$_/PVE/Storage/Custom/*.pm") } @plugins) {
        my ($file) = ($plugin =~ m{\A.*/([\w.-]+)\z});
        my $link = "$NODE/usr/share/perl5/PVE/Storage/Custom/$file";
        symlink(($plugin =~ m{\A(.*)\z})[0], $link) if !-e $link;
    }
    unshift @INC, \&_serve;
    return;
}

require POSIX;

1;
