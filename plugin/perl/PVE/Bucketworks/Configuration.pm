# SPDX-License-Identifier: AGPL-3.0-or-later
package PVE::Bucketworks::Configuration;

# What both storage types do when PVE adds, changes or removes a storage. These run under the lock of storage.cfg.
#
# One rule: the configuration is tried against the store before anything is kept: if a hook dies, nothing was.

use strict;
use warnings;

use PVE::Bucketworks::Client;
use PVE::Bucketworks::Node;

sub on_add_hook {
    my ($class, $storeid, $scfg, %sensitive) = @_;

    my $secrets = { map { $_ => $sensitive{$_} } grep { defined($sensitive{$_}) } keys %sensitive };
    _try($class->type(), $storeid, $scfg, $secrets) if _used_here($scfg);
    PVE::Bucketworks::Node::write_secrets($storeid, $class->type(), $secrets);
    return;
}

# API 13 and later. $sensitive holds what the caller named: a new value, or undef for one that is to be deleted.
sub on_update_hook_full {
    my ($class, $storeid, $scfg, $update, $delete, $sensitive) = @_;

    my $type = $class->type();
    my $changed = { %$scfg, %$update };
    delete $changed->{$_} for @{ $delete // [] };

    my $secrets = { %{ PVE::Bucketworks::Node::read_secrets($storeid, $type) }, %$sensitive };
    delete $secrets->{$_} for grep { !defined($secrets->{$_}) } keys %$secrets;

    # `--disable 1` or another content must be possible while the store is away.
    my @ours = grep { m/\Abw-/ } keys %$update, @{ $delete // [] }, keys %$sensitive;
    _try($type, $storeid, $changed, $secrets) if @ours && _used_here($changed);
    # A crash after this and before storage.cfg is written leaves the new secrets beside the old properties; the same
    # update again sets it right.
    PVE::Bucketworks::Node::write_secrets($storeid, $type, $secrets) if %$sensitive;
    return;
}

# API 11 and 12: $update has only what changes, and deleted properties are not told.
sub on_update_hook {
    my ($class, $storeid, $update, %sensitive) = @_;

    my $scfg = PVE::Storage::config()->{ids}->{$storeid} // {};
    return $class->on_update_hook_full($storeid, $scfg, $update, undef, \%sensitive);
}

sub on_delete_hook {
    my ($class, $storeid, $scfg) = @_;

    # What is in use must be let go while the service still knows the storage. One that is down has nothing to refuse.
    my (undef, $error) = PVE::Bucketworks::Client::ask($storeid, 'deactivate', {}, seconds => 20);
    die PVE::Bucketworks::Client::error_text($storeid, $error)
        if $error && ($error->{code} eq 'busy' || $error->{code} eq 'refused');
    PVE::Bucketworks::Node::remove_secrets($storeid, $class->type());
    return;
}

# A real request with that configuration; dies with what the store said.
sub _try {
    my ($type, $storeid, $scfg, $secrets) = @_;

    my $config = { type => $type };
    $config->{path} = $scfg->{path} if defined($scfg->{path});
    $config->{$_} = "$scfg->{$_}" for grep { m/\Abw-/ && defined($scfg->{$_}) } keys %$scfg;
    $config->{content} = join(',', sort keys %{ $scfg->{content} }) if ref($scfg->{content});
    PVE::Bucketworks::Client::call($storeid, 'check', { config => $config, secrets => $secrets }, seconds => 25);
    return;
}

# As PVE itself, which activates a new storage only where it is enabled.
sub _used_here {
    my ($scfg) = @_;

    return 0 if $scfg->{disable};
    return !$scfg->{nodes} || $scfg->{nodes}->{ PVE::INotify::nodename() } ? 1 : 0;
}

1;
