# SPDX-License-Identifier: AGPL-3.0-or-later
package PVE::JSONSchema;

# See lib/PVE/Storage.pm.

use strict;
use warnings;

sub get_standard_option { return { description => "standard option $_[0]", optional => 1 } }

1;
