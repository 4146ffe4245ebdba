package PVE::Bucketworks::Properties;

# SPDX-License-Identifier: AGPL-3.0-or-later
# Drawn from plugin/properties.py by `make docs`; a test compares. Change the table, not this file.

use strict;
use warnings;

# JSON schema of each property, as PVE::SectionConfig takes it. A property that both types have is defined by the files
# type alone: two definitions of one name take down everything that loads PVE::Storage.
my $properties = {
    'bw-endpoint' => {
        type => 'string',
        description => 'Address of the S3 server, or the name of an [endpoint.NAME] in config.toml; empty: the preset\'s.',
        maxLength => 4096,
    },
    'bw-preset' => {
        type => 'string',
        description => 'Provider whose address, habits and quirks to start from.',
        enum => ['aws', 'ceph', 'minio', 'garage', 'r2', 'wasabi', 'b2', 'hetzner', 'generic'],
        default => 'generic',
    },
    'bw-bucket' => {
        type => 'string',
        description => 'The bucket.',
        pattern => '[a-z0-9A-Z][a-z0-9A-Z._-]{1,254}',
    },
    'bw-prefix' => {
        type => 'string',
        description => 'What all keys begin with; two storages must not lie in each other.',
        pattern => '[A-Za-z0-9!_.*\'()=+-]+(/[A-Za-z0-9!_.*\'()=+-]+)*/?',
    },
    'bw-region' => {
        type => 'string',
        description => 'Region to sign for; auto asks the server; empty: the preset\'s.',
        maxLength => 4096,
    },
    'bw-addressing' => {
        type => 'string',
        description => 'Bucket in the path or in the host name.',
        enum => ['auto', 'path', 'virtual'],
    },
    'bw-access-key' => {
        type => 'string',
        description => 'Access key.',
        maxLength => 4096,
    },
    'bw-secret-key' => {
        type => 'string',
        description => 'Secret that goes with the access key.',
        maxLength => 4096,
    },
    'bw-session-token' => {
        type => 'string',
        description => 'Only for temporary keys.',
        maxLength => 4096,
    },
    'bw-credentials' => {
        type => 'string',
        description => 'Where the keys are, in place of the two above: file:PATH (INI form, mode 0600, on each node), profile:NAME, environment or none.',
        maxLength => 4096,
    },
    'bw-ca-file' => {
        type => 'string',
        description => 'PEM file of authorities to trust in place of the system\'s, on each node.',
        maxLength => 4096,
    },
    'bw-fingerprint' => {
        type => 'string',
        description => 'SHA-256 of the server\'s certificate, trusted whoever signed it.',
        pattern => '[0-9A-Fa-f:]{64,95}',
    },
    'bw-proxy' => {
        type => 'string',
        description => 'Http://HOST:PORT of a proxy.',
        maxLength => 4096,
    },
    'bw-connection-timeout' => {
        type => 'integer',
        description => 'Longest wait for a connection and for the next bytes of an answer, in seconds.',
        minimum => 10,
        maximum => 300,
        default => 30,
    },
    'bw-storage-class' => {
        type => 'string',
        description => 'Class that objects are put in; empty: the bucket\'s default.',
        pattern => '[A-Z0-9_]+',
    },
    'bw-part-size' => {
        type => 'integer',
        description => 'Part of a multipart upload; grows by itself where 10,000 parts would not do, in MiB.',
        minimum => 5,
        maximum => 5120,
        default => 16,
    },
    'bw-uploads' => {
        type => 'integer',
        description => 'Parts on their way at once.',
        minimum => 1,
        maximum => 20,
        default => 4,
    },
    'bw-sse' => {
        type => 'string',
        description => 'Encryption by the server; customer: with a key that we send along (SSE-C).',
        enum => ['AES256', 'aws:kms', 'customer'],
    },
    'bw-kms-key-id' => {
        type => 'string',
        description => 'Key for aws:kms; empty: the account\'s default.',
        maxLength => 4096,
    },
    'bw-sse-customer-key' => {
        type => 'string',
        description => '32 bytes in Base64, for bw-sse customer; without it nothing can be read.',
        pattern => '[A-Za-z0-9+/]{43}=',
    },
    'bw-encryption' => {
        type => 'boolean',
        description => 'Seal everything on this node before it is sent (AES-256-GCM).',
        default => 0,
    },
    'bw-encryption-key' => {
        type => 'string',
        description => 'Passphrase (12 characters or more) that opens what is sealed; keep a copy outside the cluster.',
        maxLength => 4096,
    },
    'bw-lifecycle' => {
        type => 'boolean',
        description => 'Keep lifecycle rules for our prefix in the bucket: the two transitions below, and an end to forgotten uploads.',
        default => 0,
    },
    'bw-transition-days' => {
        type => 'integer',
        description => 'Age at which backups go to bw-transition-class; 0: never, in days.',
        minimum => 0,
        maximum => 36500,
        default => 0,
    },
    'bw-transition-class' => {
        type => 'string',
        description => 'Class of the first transition.',
        pattern => '[A-Z0-9_]+',
        default => 'STANDARD_IA',
    },
    'bw-glacier-days' => {
        type => 'integer',
        description => 'Age at which backups go to bw-glacier-class, from where they must be thawed; 0: never, in days.',
        minimum => 0,
        maximum => 36500,
        default => 0,
    },
    'bw-glacier-class' => {
        type => 'string',
        description => 'Class of the second transition.',
        pattern => '[A-Z0-9_]+',
        default => 'GLACIER',
    },
    'bw-object-lock' => {
        type => 'string',
        description => 'Hold: protected is a legal hold too; governance, compliance: backups are also locked for bw-lock-days.',
        enum => ['none', 'hold', 'governance', 'compliance'],
        default => 'none',
    },
    'bw-lock-days' => {
        type => 'integer',
        description => 'How long a backup cannot be deleted by anybody, from its upload on; 0: not at all, in days.',
        minimum => 0,
        maximum => 36500,
        default => 0,
    },
    'bw-quota' => {
        type => 'integer',
        description => 'What Proxmox VE is told as the storage\'s size, and what uploads are refused beyond; 0: no limit, in GiB.',
        minimum => 0,
        maximum => 1099511627776,
        default => 0,
    },
    'bw-requests-per-second' => {
        type => 'integer',
        description => 'Most requests of this node in a second; 0: no limit, in requests/s.',
        minimum => 0,
        maximum => 1000000,
        default => 0,
    },
    'bw-rate' => {
        type => 'integer',
        description => 'Most bytes of this node in a second, both ways together; 0: no limit, in MiB/s.',
        minimum => 0,
        maximum => 1000000,
        default => 0,
    },
    'bw-budget-requests' => {
        type => 'integer',
        description => 'Requests of this node in a calendar month; 0: no limit, in requests.',
        minimum => 0,
        maximum => 1099511627776,
        default => 0,
    },
    'bw-budget-egress' => {
        type => 'integer',
        description => 'Bytes that this node reads in a calendar month; 0: no limit, in GiB.',
        minimum => 0,
        maximum => 1099511627776,
        default => 0,
    },
    'bw-budget-action' => {
        type => 'string',
        description => 'What happens to new work beyond a budget; deletes are never refused.',
        enum => ['warn', 'refuse'],
        default => 'warn',
    },
    'bw-flush' => {
        type => 'string',
        description => 'What a guest\'s FLUSH waits for: the journal on this node\'s disk, or the bucket.',
        enum => ['local', 's3'],
        default => 'local',
    },
    'bw-disk-cache' => {
        type => 'integer',
        description => 'Local read cache of each active disk, in GiB.',
        minimum => 1,
        maximum => 1048576,
        default => 4,
    },
    'bw-disk-journal' => {
        type => 'integer',
        description => 'Acknowledged writes of each active disk that are not yet in the bucket, in GiB.',
        minimum => 1,
        maximum => 1048576,
        default => 1,
    },
    'bw-lease' => {
        type => 'integer',
        description => 'How long a disk goes on acknowledging without hearing from the store, and how long another node waits before it takes over from one that is dead, in seconds.',
        minimum => 10,
        maximum => 86400,
        default => 600,
    },
    'bw-gateway-port' => {
        type => 'integer',
        description => 'TCP port on which nodes reach each other\'s disks during a live migration.',
        minimum => 1,
        maximum => 65535,
        default => 3265,
    },
};

my $types = {
    bucketfiles => {
        takes => [
            'bw-endpoint',
            'bw-preset',
            'bw-bucket',
            'bw-prefix',
            'bw-region',
            'bw-addressing',
            'bw-access-key',
            'bw-secret-key',
            'bw-session-token',
            'bw-credentials',
            'bw-ca-file',
            'bw-fingerprint',
            'bw-proxy',
            'bw-connection-timeout',
            'bw-storage-class',
            'bw-part-size',
            'bw-uploads',
            'bw-sse',
            'bw-kms-key-id',
            'bw-sse-customer-key',
            'bw-encryption',
            'bw-encryption-key',
            'bw-lifecycle',
            'bw-transition-days',
            'bw-transition-class',
            'bw-glacier-days',
            'bw-glacier-class',
            'bw-object-lock',
            'bw-lock-days',
            'bw-quota',
            'bw-requests-per-second',
            'bw-rate',
            'bw-budget-requests',
            'bw-budget-egress',
            'bw-budget-action',
        ],
        defines => [
            'bw-endpoint',
            'bw-preset',
            'bw-bucket',
            'bw-prefix',
            'bw-region',
            'bw-addressing',
            'bw-access-key',
            'bw-secret-key',
            'bw-session-token',
            'bw-credentials',
            'bw-ca-file',
            'bw-fingerprint',
            'bw-proxy',
            'bw-connection-timeout',
            'bw-storage-class',
            'bw-part-size',
            'bw-uploads',
            'bw-sse',
            'bw-kms-key-id',
            'bw-sse-customer-key',
            'bw-encryption',
            'bw-encryption-key',
            'bw-lifecycle',
            'bw-transition-days',
            'bw-transition-class',
            'bw-glacier-days',
            'bw-glacier-class',
            'bw-object-lock',
            'bw-lock-days',
            'bw-quota',
            'bw-requests-per-second',
            'bw-rate',
            'bw-budget-requests',
            'bw-budget-egress',
            'bw-budget-action',
        ],
    },
    bucketdisks => {
        takes => [
            'bw-endpoint',
            'bw-preset',
            'bw-bucket',
            'bw-prefix',
            'bw-region',
            'bw-addressing',
            'bw-access-key',
            'bw-secret-key',
            'bw-session-token',
            'bw-credentials',
            'bw-ca-file',
            'bw-fingerprint',
            'bw-proxy',
            'bw-connection-timeout',
            'bw-encryption',
            'bw-encryption-key',
            'bw-quota',
            'bw-requests-per-second',
            'bw-rate',
            'bw-budget-requests',
            'bw-budget-egress',
            'bw-budget-action',
            'bw-flush',
            'bw-disk-cache',
            'bw-disk-journal',
            'bw-lease',
            'bw-gateway-port',
        ],
        defines => [
            'bw-flush',
            'bw-disk-cache',
            'bw-disk-journal',
            'bw-lease',
            'bw-gateway-port',
        ],
    },
};

my $fixed = { 'bw-bucket' => 1, 'bw-prefix' => 1, 'bw-encryption' => 1 };
my $required = { 'bw-bucket' => 1 };
my $secrets = { 'bw-secret-key' => 1, 'bw-session-token' => 1, 'bw-sse-customer-key' => 1, 'bw-encryption-key' => 1 };

sub defined_by {
    my ($type) = @_;
    return { map { $_ => { %{ $properties->{$_} } } } @{ $types->{$type}->{defines} } };
}

sub options {
    my ($type) = @_;
    my $options = {};
    for my $name (@{ $types->{$type}->{takes} }) {
        # A secret is optional whatever it is for: one that is required cannot be kept out of storage.cfg.
        my $option = $required->{$name} ? {} : { optional => 1 };
        $option->{fixed} = 1 if $fixed->{$name};
        $options->{$name} = $option;
    }
    return $options;
}

sub secrets {
    my ($type) = @_;
    return [grep { $secrets->{$_} } @{ $types->{$type}->{takes} }];
}

1;
