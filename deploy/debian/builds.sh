# Read by maintainer scripts: makes, compiles and removes the builds that processes run from (start.py says why there are any).
# `home` is /usr/lib/bucketworks.

current_build() {
	cat "$home/shipped/BUILD"
}

# Links to the shipped files under a name of their own: an upgrade replaces the shipped ones, and these stay. A crash leaves
# `.new`, which the next call removes.
make_build() {
	[ ! -d "$home/builds/$(current_build)" ] || return 0
	rm -rf "$home/builds/.new"
	mkdir -p "$home/builds"
	cp -al "$home/shipped" "$home/builds/.new" 2>/dev/null || {
		rm -rf "$home/builds/.new"
		cp -a "$home/shipped" "$home/builds/.new"
	}
	mv -T "$home/builds/.new" "$home/builds/$(current_build)"
}

# Without this every start would compile; units that may not write below /usr could never keep it.
compile_build() {
	version=$(python3 -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
	build=$(current_build)
	[ ! -e "$home/builds/$build/.$version" ] || return 0
	for tree in "$home/builds/$build/python3" "$home/builds/$build/$version"; do
		[ -d "$tree" ] || continue
		# Several processes need shared memory, which a chroot may lack.
		python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash "$tree" 2>/dev/null ||
			python3 -m compileall -q --invalidation-mode unchecked-hash "$tree" || true
	done
	touch "$home/builds/$build/.$version"
}

# Numbers of the processes that have mapped a module of a build: every process of ours loads compiled ones at once.
processes_of() {
	grep -lsF "$1/" /proc/[0-9]*/maps | cut -d/ -f3 || true
}

# Builds that no process runs from.
sweep_builds() {
	for old in "$home"/builds/*; do
		[ "$old" != "$home/builds/$(current_build)" ] || continue
		[ -n "$(processes_of "$old")" ] || rm -rf "$old"
	done
}
