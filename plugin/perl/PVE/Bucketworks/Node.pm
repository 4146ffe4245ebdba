# SPDX-License-Identifier: AGPL-3.0-or-later
package PVE::Bucketworks::Node;

# Where things are on this node, found without asking the service: its directories, the local copies of a storage's
# files, the storage's mount, its secrets.
#
# One rule: nothing here waits: no socket is opened, and no file below a mount is touched, not even with stat().

use strict;
use warnings;

our $SECRETS = '/etc/pve/priv/storage';
our $MOUNTS = '/proc/self/mounts';

# The tree below PREFIX in the bucket, on the mount and in the cache (plugin/layout.py).
my $directories = {
    backup => 'dump',
    iso => 'template/iso',
    vztmpl => 'template/cache',
    snippets => 'snippets',
    import => 'import',
};

my $defaults = {
    state_dir => '/var/lib/bucketworks/pve',
    run_dir => '/run/bucketworks',
    gateway_listen => '127.0.0.1',
};

# A directory or an address of the table [pve] in config.toml; the default where the file or the line is not there.
sub setting {
    my ($name) = @_;

    my $default = $defaults->{$name} // die "no such setting '$name'\n";
    my $path = $ENV{BUCKETWORKS_CONFIG} // '/etc/bucketworks/config.toml';
    open(my $file, '<', $path) or return $default;
    my $table = '';
    while (my $line = <$file>) {
        chomp($line);
        if ($line =~ m/\A\s*\[\s*([^\]]*?)\s*\]\s*(?:#.*)?\z/) {
            $table = $1;
        } elsif ($table eq 'pve' && $line =~ m/\A\s*\Q$name\E\s*=\s*(["'])([^"'\\]+)\1\s*(?:#.*)?\z/) {
            my $value = $2;
            return absolute_path($value) if $name =~ m/_dir\z/;
            return $value =~ m/\A([0-9A-Za-z.:-]+)\z/ ? $1 : die "[pve] $name: '$value' is no address\n";
        }
    }
    return $default;
}

# The path as bytes, untainted. Dies if it is not absolute or could climb out of a directory.
sub absolute_path {
    my ($path) = @_;

    $path = '' if !defined($path) || ref($path);
    utf8::encode($path) if utf8::is_utf8($path);
    if ($path =~ m{/\.\.(?:/|\z)} || $path !~ m{\A(/[^\0\n]*)\z}) {
        $path =~ s/[\x00-\x1f\x7f]/?/g;
        die "not an absolute path: '$path'\n";
    }
    return $1;
}

# The local copy of a file, whether there is one or not. Only whole files have that name.
sub cached_path {
    my ($storeid, $vtype, $name) = @_;

    my $directory = $directories->{$vtype} // die "no local copies of '$vtype'\n";
    return absolute_path(setting('state_dir') . "/$storeid/cache/$directory/$name");
}

# Whether something is mounted at $path, by the kernel's list: a stat() could hang.
sub is_mounted {
    my ($path) = @_;

    $path =~ s{/+\z}{} if $path ne '/';
    open(my $mounts, '<', $MOUNTS) or return 0;
    while (my $line = <$mounts>) {
        my (undef, $target) = split(/ /, $line);
        $target =~ s/\\([0-7]{3})/chr(oct($1))/ge;
        return 1 if $target eq $path;
    }
    return 0;
}

sub _secrets_path {
    my ($storeid, $type) = @_;
    $storeid =~ m/\A([A-Za-z][A-Za-z0-9._-]*)\z/ or die "'$storeid' is no storage id\n";
    return "$SECRETS/$1.$type";
}

# The secrets of a storage by property name: `NAME VALUE` lines (plugin/configuration.py reads the same file).
sub read_secrets {
    my ($storeid, $type) = @_;

    my $secrets = {};
    open(my $file, '<', _secrets_path($storeid, $type)) or return $secrets;
    while (my $line = <$file>) {
        $secrets->{$1} = $2 if $line =~ m/\A(bw-[a-z0-9-]+) (.*?)\s*\z/;
    }
    return $secrets;
}

# Keep them, mode 0600, in one step; no secrets, no file. A crash leaves the old or the new ones.
sub write_secrets {
    my ($storeid, $type, $secrets) = @_;

    my $path = _secrets_path($storeid, $type);
    my @names = sort grep { defined($secrets->{$_}) } keys %$secrets;
    return remove_secrets($storeid, $type) if !@names;

    my $text = '';
    for my $name (@names) {
        my $value = $secrets->{$name};
        die "$name: a secret is one line without spaces at its ends\n"
            if $value !~ m/\A[^\s\0](?:[^\n\r\0]*[^\s\0])?\z/;
        utf8::encode($value) if utf8::is_utf8($value);
        $text .= "$name $value\n";
    }
    mkdir $SECRETS;
    PVE::Tools::file_set_contents($path, $text, 0600);
    return;
}

sub remove_secrets {
    my ($storeid, $type) = @_;

    my $path = _secrets_path($storeid, $type);
    unlink($path) or $!{ENOENT} or die "cannot remove $path: $!\n";
    return;
}

1;
