. "$SCENARIOS/kit.sh"
forget
same_tree "$work/tree" /srv/castore/tree
within 120 ls /srv/castore/added
same_tree "$work/tree/deep" /srv/castore/added
