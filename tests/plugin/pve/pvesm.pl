#!/usr/bin/perl
# SPDX-License-Identifier: AGPL-3.0-or-later
# pvesm of the checkouts. Upstream runs it without taint mode.
use strict;
use warnings;

use File::Basename ();
use lib ();

BEGIN { lib->import(File::Basename::dirname(__FILE__) . '/lib') }
use PveCheckout;

require PVE::CLI::pvesm;
PVE::CLI::pvesm->run_cli_handler();
