# What a daemon would refuse or, worse, not notice. Each sentence ends with the fix.
{
  lib,
  config,
  ports,
}:

let
  cfg = config.services.castore-fs;
  inherit (cfg.settings)
    stores
    mounts
    listen
    ;
  inherit (cfg) virtiofs;

  quoted = names: lib.concatMapStringsSep ", " (name: ''"${name}"'') names;
  # Without any the daemon has one of its own.
  names = if stores == { } then [ "default" ] else lib.attrNames stores;
  known = "there is ${quoted names}";

  # Each thing that names a store: what it is called in the configuration, and the name.
  uses =
    let
      of =
        kind:
        lib.mapAttrsToList (
          name: value: {
            place = "${kind}.${name}.store";
            inherit (value) store;
          }
        );
    in
    of "mounts" mounts ++ of "virtiofs" virtiofs ++ of "settings.listen" listen;

  # "/srv/tree/", "/srv//tree" and "/srv/./tree" are one place.
  parts = path: lib.filter (part: part != "" && part != ".") (lib.splitString "/" path);
  placed = lib.mapAttrsToList (name: mount: {
    inherit name;
    path = "/" + lib.concatStringsSep "/" (parts mount.path);
    written = mount.path;
  }) mounts;
  pairs = lib.concatLists (
    lib.imap0 (i: a: map (b: { inherit a b; }) (lib.drop (i + 1) placed)) placed
  );
  below =
    inner: outer: lib.hasPrefix (if outer.path == "/" then "/" else outer.path + "/") inner.path;

  unprivileged = cfg.user != null && cfg.user != "root";
  overStore = lib.attrNames (lib.filterAttrs (_: mount: mount.overNixStore) cfg.mounts);

  say = message: "services.castore-fs: ${message}";
in
map (entry: entry // { message = say entry.message; }) (
  [
    {
      assertion = cfg.openFirewall -> ports != [ ];
      message = ''`openFirewall` is set, and nothing listens on TCP. Give a listener a TCP address, as in `settings.listen.network.address = "[::]:7740"`, or leave `openFirewall` out.'';
    }
    {
      assertion = lib.length overStore <= 1;
      message = "the mounts ${quoted overStore} all ask to be layered below /nix/store, where one fits. Leave `overNixStore` on one of them, and give that one a store that has the others' content too.";
    }
  ]
  ++ map (use: {
    assertion = use.store != null || lib.length names == 1;
    message = "`${use.place}` is missing, and there is more than one store to choose from (${known}). Set it to one of them.";
  }) uses
  ++ map (use: {
    assertion = use.store != null -> lib.elem use.store names;
    message = ''`${use.place}` names the store "${toString use.store}", which is not declared (${known}). Declare `stores.${toString use.store}`, or name one of those.'';
  }) uses
  ++ lib.mapAttrsToList (name: store: {
    assertion = store.credential != null -> cfg.credentials ? ${store.credential};
    message = ''the store "${name}" takes its token from the credential "${toString store.credential}", which is not declared. Set `credentials.${toString store.credential}` to the path of the file that has it.'';
  }) cfg.stores
  ++ lib.mapAttrsToList (name: store: {
    assertion = !(lib.hasInfix "token-file=${builtins.storeDir}" (store.url or ""));
    message = ''the token of the store "${name}" is in the Nix store, where everybody can read it. Put it into `credentials.${name}` as the path of a file on the machine, and set `stores.${name}.credential = "${name}"`.'';
  }) stores
  ++ map (mount: {
    assertion = lib.hasPrefix "/" mount.written && !(lib.elem ".." (parts mount.written));
    message = ''the mount "${mount.name}" has the path "${mount.written}", which is not an absolute one. Write it from the root, without "..".'';
  }) placed
  ++ map (mount: {
    assertion = mount.path != "/" && mount.path != "/nix" && mount.path != "/nix/store";
    message = ''the mount "${mount.name}" would hide ${mount.path}, from which the machine runs. Mount it elsewhere, as in "/run/castore-fs/store"; to have it below /nix/store, set `mounts.${mount.name}.overNixStore`.'';
  }) placed
  ++ map (
    { a, b }:
    {
      assertion = a.path != b.path;
      message = ''the mounts "${a.name}" and "${b.name}" are both on ${a.path}. Give one of them another path.'';
    }
  ) pairs
  ++
    map
      (
        { inner, outer }:
        {
          assertion = !(below inner outer);
          message = ''the mount "${inner.name}" on ${inner.path} is below the mount "${outer.name}" on ${outer.path}, which is read-only and has no folder for it. Put them side by side.'';
        }
      )
      (
        lib.concatMap ({ a, b }: [
          {
            inner = a;
            outer = b;
          }
          {
            inner = b;
            outer = a;
          }
        ]) pairs
      )
  ++ lib.mapAttrsToList (name: mount: {
    assertion =
      mount.allow-other != false && unprivileged && cfg.mountWith == "fusermount"
      -> config.programs.fuse.userAllowOther;
    message = ''the mount "${name}" is to be seen by other users, which the user "${toString cfg.user}" has no privilege to ask of fusermount3. Set `programs.fuse.userAllowOther = true`, or `mountWith = "capability"`, or `mounts.${name}.allowOther = false`.'';
  }) mounts
  ++ map (name: {
    assertion = mounts.${name}.list-root == false;
    message = ''the mount "${name}" is layered below /nix/store and lists its root, so that collecting garbage would take everything in it for garbage and cover it up. Set `mounts.${name}.listRoot = false`.'';
  }) overStore
)
