. "$SCENARIOS/kit.sh"
make_tree "$work/tree"
cp -r "$work/tree" "$work/later"
head -c 3000000 /dev/urandom >"$work/later/large"
for tree in tree later; do
    castore-fs import "$work/$tree" --store \
        "objectstore+s3://castore/tree?endpoint=http://storage1:3900&region=garage&credentials-file=$SCENARIOS/object-store/files/s3"
done
# The mount was there before the bucket was.
within 120 ls /srv/castore/tree
same_tree "$work/tree" /srv/castore/tree
