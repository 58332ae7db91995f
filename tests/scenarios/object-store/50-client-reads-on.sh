# Not one read fails: the other server has all of it, and two of three nodes are enough.
. "$SCENARIOS/kit.sh"
forget
same_tree "$work/later" /srv/castore/later
same_tree "$work/tree" /srv/castore/tree
castore-fs import --name added "$work/tree/deep" --store \
    "objectstore+s3://castore/tree?endpoint=http://storage2:3900&region=garage&credentials-file=$SCENARIOS/object-store/files/s3"
