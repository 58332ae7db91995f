# What `castore-fs check-config` cannot see in the file that it judges when the configuration is built: what
# goes with options that are not in it, and what only a machine with a Nix store has to fear. What it can
# see is not repeated in this file. Each sentence ends with the fix.
{
  lib,
  config,
  ports,
}:

let
  cfg = config.services.castore-fs;
  inherit (cfg.settings) stores mounts listen;
  declared = import ./declared.nix { inherit lib cfg; };
  isolated = lib.filterAttrs (_: guest: guest.isolated) cfg.virtiofs;

  quoted = names: lib.concatMapStringsSep ", " (name: ''"${name}"'') names;
  inherit (declared) names;
  known = "there is ${quoted names}";

  urlOf = store: if store.url == null then "" else store.url;

  # "/srv/tree/", "/srv//tree" and "/srv/./tree" are one place.
  parts = path: lib.filter (part: part != "" && part != ".") (lib.splitString "/" path);
  placed = lib.mapAttrsToList (name: mount: {
    inherit name;
    path = "/" + lib.concatStringsSep "/" (parts mount.path);
  }) mounts;
  # Each two of a list.
  pairsOf =
    list: lib.concatLists (lib.imap0 (i: a: map (b: { inherit a b; }) (lib.drop (i + 1) list)) list);
  pairs = pairsOf placed;
  below = inner: outer: lib.hasPrefix (outer.path + "/") inner.path;

  # What the sandbox of an isolated guest (ProtectHome=, PrivateTmp=) hides.
  hidden = [
    "/home"
    "/root"
    "/run/user"
    "/tmp"
    "/var/tmp"
  ];
  directoryOf =
    guest:
    let
      url = declared.urlOf (declared.meant guest.store);
      path = builtins.match "(local|grpc[+]unix):(/[^?]*).*" (builtins.unsafeDiscardStringContext url);
    in
    if path == null then "" else "/" + lib.concatStringsSep "/" (parts (lib.last path));

  unprivileged = cfg.user != null && cfg.user != "root";
  overStore = lib.attrNames (lib.filterAttrs (_: mount: mount.overNixStore) cfg.mounts);

  # "%2Fnix" is "/nix".
  decoded =
    let
      hex = code: lib.fixedWidthString 2 "0" (lib.toHexString code);
      characters = lib.stringToCharacters (
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
        + "!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~ "
      );
      codes = map (character: {
        inherit character;
        code = lib.strings.charToInt character;
      }) characters;
    in
    lib.replaceStrings
      (lib.concatMap (entry: [
        "%${hex entry.code}"
        "%${lib.toLower (hex entry.code)}"
      ]) codes)
      (
        lib.concatMap (entry: [
          entry.character
          entry.character
        ]) codes
      );

  # All text in a value.
  texts =
    value:
    if lib.isString value then
      [ value ]
    else if lib.isList value then
      lib.concatMap texts value
    else if lib.isAttrs value then
      lib.concatMap texts (lib.attrValues value)
    else
      [ ];
  # The names of credentials that a text has the daemon read.
  credentialsIn =
    text:
    map lib.head (
      lib.filter lib.isList (
        builtins.split "/run/credentials/castore-fs[.]service/([^/?&]+)" (
          builtins.unsafeDiscardStringContext text
        )
      )
    );
  ofStores = lib.concatMap (store: [
    store.credential
    store.tls.certificate
    store.tls.key
    (if store.binaryCache == null then null else store.binaryCache.netrc)
  ]) (lib.attrValues cfg.stores);
  usedCredentials = lib.unique (
    lib.subtractLists ofStores (lib.concatMap credentialsIn (texts cfg.settings))
  );

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
  ++ map (name: {
    assertion = cfg.credentials ? ${name};
    message = ''`settings` names the credential "${name}", which is not declared. Set `credentials.${name}` to the path of the file that has it.'';
  }) usedCredentials
  ++ [
    {
      assertion = unprivileged -> config.users.users ? ${cfg.user};
      message = ''the user "${toString cfg.user}" is not declared. Set `users.users.${toString cfg.user}`, or take `user = "castore-fs"`, which is made here.'';
    }
    {
      assertion =
        unprivileged && cfg.group != null && cfg.group != "root" && cfg.group != cfg.user
        -> config.users.groups ? ${cfg.group};
      message = ''the group "${toString cfg.group}" is not declared. Set `users.groups.${toString cfg.group}`, or leave `group` out.'';
    }
  ]
  # Isolated guests are not in the daemon's file.
  ++ lib.mapAttrsToList (name: guest: {
    assertion = guest.store != null || lib.length names == 1;
    message = "`virtiofs.${name}.store` is missing, and there is more than one store to choose from (${known}). Set it to one of them.";
  }) isolated
  ++ lib.mapAttrsToList (name: guest: {
    assertion =
      guest.isolated || guest.closure != null -> builtins.match "[A-Za-z0-9:_.-]+" name != null;
    message = ''the guest "${name}" has units of its own, and systemd takes no such name for a unit. Give it one of letters, digits and the characters ":", "_", "." and "-".'';
  }) cfg.virtiofs
  ++ lib.mapAttrsToList (name: guest: {
    assertion = guest.store != null -> declared.stores ? ${guest.store};
    message = ''`virtiofs.${name}.store` names the store "${toString guest.store}", which is not declared (${known}). Declare `stores.${toString guest.store}`, or name one of those.'';
  }) isolated
  ++ lib.concatLists (
    lib.mapAttrsToList (
      name: store:
      map
        (
          { key, credential }:
          {
            assertion = credential != null -> cfg.credentials ? ${credential};
            message = ''`stores.${name}.${key}` names the credential "${toString credential}", which is not declared. Set `credentials.${toString credential}` to the path of the file that has it.'';
          }
        )
        [
          {
            key = "credential";
            inherit (store) credential;
          }
          {
            key = "tls.certificate";
            credential = store.tls.certificate;
          }
          {
            key = "tls.key";
            credential = store.tls.key;
          }
          {
            key = "binaryCache.netrc";
            credential = if store.binaryCache == null then null else store.binaryCache.netrc;
          }
        ]
    ) cfg.stores
  )
  ++ lib.mapAttrsToList (name: store: {
    assertion =
      let
        inUrl = lib.concatMap (lib.splitString "&") (lib.drop 1 (lib.splitString "?" (urlOf store)));
        secret =
          parameter:
          lib.any (name: lib.hasPrefix "${name}=" parameter) [
            "token-file"
            "credentials-file"
            "tls-client-key-path"
          ];
        inKeys = lib.filter (text: text != null) [
          store.token-file
          store.tls-client-key-path
          (store.binary-cache.token-file or null)
          (store.binary-cache.netrc-file or null)
        ];
      in
      !lib.any (text: lib.hasInfix builtins.storeDir (decoded text)) (lib.filter secret inUrl ++ inKeys);
    message = ''a secret of the store "${name}" is in the Nix store, where every user can read it. Put it into `credentials.${name}` as the path of a file on the machine, and name it in `stores.${name}.credential` or `stores.${name}.tls.key`.'';
  }) stores
  ++ lib.concatLists (
    lib.mapAttrsToList (
      name: listener:
      map
        (key: {
          assertion = listener.${key} != null -> !lib.hasPrefix "${builtins.storeDir}/" listener.${key};
          message = ''`settings.listen.${name}.${key}` is in the Nix store, where every user can read it. Put it into `credentials.${name}` as the path of a file on the machine, and set `settings.listen.${name}.${key} = "/run/credentials/castore-fs.service/${name}"`.'';
        })
        [
          "secret-key-file"
          "tls-key-path"
          "token-file"
        ]
    ) listen
  )
  ++ lib.mapAttrsToList (name: guest: {
    assertion = !lib.any (directory: lib.hasPrefix "${directory}/" "${directoryOf guest}/") hidden;
    message = ''the guest "${name}" is isolated, and its store is in ${directoryOf guest}, of which its process sees nothing: none of ${lib.concatStringsSep ", " hidden}. Leave out `virtiofs.${name}.isolated`, or have the store elsewhere, as in "local:/var/lib/castore-fs".'';
  }) isolated
  ++ lib.mapAttrsToList (name: guest: {
    assertion =
      let
        chosen = toString (declared.meant guest.store);
      in
      stores ? ${chosen} -> stores.${chosen}.url != null;
    message = ''the guest "${name}" is isolated, and the store "${toString guest.store}" is made of others, which is the daemon's work. Leave out `virtiofs.${name}.isolated`; or serve that store on a socket with `settings.listen`, and give the guest a store with that socket's URL, as in "grpc+unix:/run/castore-fs/castore.sock".'';
  }) isolated
  ++ lib.mapAttrsToList (name: guest: {
    assertion =
      guest.socketGroup != null && !guest.isolated
      -> guest.socket == "/run/castore-fs-virtiofs/${name}/socket";
    message = ''the guest "${name}" has a socket of another place and a group for it, which the daemon has no privilege to give. Leave out `virtiofs.${name}.socket`, or set `virtiofs.${name}.isolated`.'';
  }) cfg.virtiofs
  ++ lib.mapAttrsToList (name: guest: {
    assertion = guest.isolated -> guest.warmup != "learn";
    message = ''the guest "${name}" is isolated, and a process that has given up every file has nowhere to keep what it records. Leave out `virtiofs.${name}.warmup`, or `virtiofs.${name}.isolated`.'';
  }) cfg.virtiofs
  ++ lib.mapAttrsToList (name: guest: {
    assertion = if guest.isolated then guest.settings == { } else guest.extraFlags == [ ];
    message =
      if guest.isolated then
        ''`virtiofs.${name}.settings` is for the daemon's file, and "${name}" is served by a process of its own. Set it in `virtiofs.${name}.extraFlags`.''
      else
        ''`virtiofs.${name}.extraFlags` are for a process of its own, and "${name}" is served by the daemon. Set it in `virtiofs.${name}.settings`, or set `virtiofs.${name}.isolated`.'';
  }) cfg.virtiofs
  ++ map (mount: {
    assertion = mount.path != "/nix" && mount.path != "/nix/store";
    message = ''the mount "${mount.name}" would hide ${mount.path}, from which the machine runs. Mount it elsewhere, as in "/run/castore-fs/store"; to have it below /nix/store, set `mounts.${mount.name}.overNixStore`.'';
  }) placed
  ++
    map
      (
        { inner, outer }:
        {
          assertion = !(below inner outer);
          message = ''the mount "${inner.name}" on ${inner.path} is below the mount "${outer.name}" on ${outer.path}, which is read-only and has no directory for it. Put them side by side.'';
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
    assertion = builtins.match ".*[,:\"\\\\].*" mounts.${name}.path == null;
    message = ''the mount "${name}" is layered below /nix/store, where a path with a comma, a colon, a quote or a backslash means something else. Set `mounts.${name}.path` to one without, as in "/run/castore-fs-store".'';
  }) overStore
  ++ map (name: {
    assertion = mounts.${name}.list-root == "empty";
    message = ''the mount "${name}" is layered below /nix/store: if its root is listed, collecting garbage takes everything in it for garbage and covers it up, and if listing is refused, /nix/store cannot be listed either. Leave out `mounts.${name}.listRoot`.'';
  }) overStore
)
