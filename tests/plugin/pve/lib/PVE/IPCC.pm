# SPDX-License-Identifier: AGPL-3.0-or-later
package PVE::IPCC;

# In place of the compiled client of pmxcfs: answers from the files below etc/pve of the node that is a directory.

use strict;
use warnings;

use Errno qw(ENOENT);
use JSON ();
use POSIX ();

use PVE::Cluster::IPCConst;

my $versions = 0;
my $status = {};

sub _pve { return "$PveCheckout::NODE/etc/pve" }

sub _node { return ((POSIX::uname())[1] =~ m/\A([\w-]+)/)[0] }

sub _guests {
    my $found = {};
    for my $path (glob(_pve() . '/nodes/*/{qemu-server,lxc}/*.conf')) {
        my ($node, $kind, $vmid) = ($path =~ m{/nodes/([\w-]+)/(qemu-server|lxc)/([0-9]+)\.conf\z}) or next;
        $found->{$vmid} = { node => $node, type => $kind eq 'lxc' ? 'lxc' : 'qemu', version => ++$versions };
    }
    return $found;
}

my $answers = {
    # Each look finds everything changed, so nothing is ever served from a cache of another test's making.
    CFS_IPC_GET_FS_VERSION => sub {
        my @files = map { m{/etc/pve/(.*)\z} } grep { -f } glob(_pve() . '/{*,priv/*}');
        return JSON::encode_json(
            { starttime => 1, clinfo => 1, vmlist => ++$versions, map { $_ => ++$versions } @files },
        );
    },
    CFS_IPC_GET_CLUSTER_INFO => sub {
        my $node = _node();
        my $nodes = { $node => { id => 1, online => 1, ip => '127.0.0.1' } };
        return JSON::encode_json({ nodename => $node, version => 1, nodelist => $nodes });
    },
    CFS_IPC_GET_GUEST_LIST => sub { return JSON::encode_json({ version => ++$versions, ids => _guests() }) },
    CFS_IPC_SET_STATUS => sub {
        my ($name, $data) = unpack('Z[256]a*', $_[0]);
        $status->{$name} = $data;
        return '';
    },
    CFS_IPC_GET_STATUS => sub { return $status->{ unpack('Z[256]', $_[0]) } },
    CFS_IPC_GET_CONFIG => sub {
        open(my $file, '<:raw', _pve() . '/' . unpack('Z*', $_[0])) or return;
        local $/;
        return scalar(<$file>) // '';
    },
    CFS_IPC_LOG_CLUSTER_MSG => sub { return '' },
};

sub ipcc_send_rec {
    my ($number, $data) = @_;

    my $name = PVE::Cluster::IPCConst::name($number);
    my $answer = $answers->{$name} or die "this node answers no $name\n";
    my $text = $answer->($data // '');
    $! = defined($text) ? 0 : ENOENT;
    return defined($text) && $text ne '' ? $text : undef;
}

1;
