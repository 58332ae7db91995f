. "$SCENARIOS/kit.sh"
within 60 cat /srv/castore/later/file
[ "$(cat /srv/castore/later/file)" = "not read yet" ] || fail "wrong bytes after the server came back"
same_tree "$work/tree" /srv/castore/tree
