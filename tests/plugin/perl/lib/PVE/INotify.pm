# SPDX-License-Identifier: AGPL-3.0-or-later
package PVE::INotify;

# See lib/PVE/Storage.pm.

use strict;
use warnings;

sub nodename { return 'node1' }

1;
