# Imports a closure into a store and adds its names to a file, which says what a guest is shown (`roots-from`):
#
#   import-closure.sh STORE CLOSURE-INFO FILE RECORDS [CLOSURE-INFO…]
#
# CLOSURE-INFO is what nixpkgs' `closureInfo` makes: its `store-paths` are the closure, and it is served with
# them. RECORDS is a directory that outlives the boot. It has, for each store, the names of the roots that were made
# here; those that are in no file beside FILE, which has what a guest was shown since the boot, and in none of the
# other closures of this store, are removed: the space is then garbage's. POSIX shell; needs castore-fs(1), flock(1).
set -eu
export LC_ALL=C

store=$1
info=$2
file=$3
records=$4
shift 4

# names CLOSURE-INFO…: of their roots.
names() {
    for closure; do
        cat "$closure/store-paths"
        echo "$closure"
    done | sed 's#.*/##' | sort -u
}

# listed FILE: the names of the store's roots: none, where the import makes the store.
listed() {
    if [ -e "${store#local:}/format" ]; then
        castore-fs ls --store "$store" >"$record.list"
    else
        : >"$record.list"
    fi
    sort -u "$record.list" >"$1"
    rm "$record.list"
}

record=$records/$(printf %s "$store" | sed 's#/#_#g')
exec 9>>"$record.lock"
flock 9
touch "$record"

# Noted before they are made: what is only here after an interruption is not forgotten. What others have made
# stays theirs.
listed "$record.there"
names "$info" | comm -23 - "$record.there" | sort -u - "$record" >"$record.new"
mv "$record.new" "$record"
xargs -- castore-fs import --store "$store" "$info" <"$info/store-paths"

# What a running guest has been shown it is shown until the host boots again.
touch "$file"
{
    cat "$file" "$info/store-paths"
    echo "$info"
} | sort -u >"$file.new"
mv "$file.new" "$file"

{
    names "$info" "$@"
    sed 's#.*/##' "$(dirname "$file")"/*
} | sort -u >"$record.used"
listed "$record.there"
comm -23 "$record" "$record.used" | comm -12 - "$record.there" >"$record.gone"
if ! [ -s "$record.gone" ] || xargs -- castore-fs rm --referred --store "$store" -- <"$record.gone" >/dev/null; then
    comm -12 "$record" "$record.used" >"$record.new"
    mv "$record.new" "$record"
else
    echo "the roots of former closures stay in $store, for the reason above; the next import of a closure tries again" >&2
fi
rm -f "$record.there" "$record.used" "$record.gone"
