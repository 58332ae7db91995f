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
  isolated = lib.filterAttrs (_: guest: guest.isolated) cfg.virtiofs;

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
    of "mounts" mounts
    ++ of "virtiofs" (cfg.settings.virtiofs // isolated)
    ++ of "settings.listen" listen
    ++ lib.concatLists (
      lib.mapAttrsToList (
        name: store:
        map (member: {
          place = "stores.${name}.${member.key}";
          store = member.name;
        }) (membersOf store)
      ) stores
    );

  # What a store is made of, and by which key.
  membersOf =
    store:
    let
      under =
        key:
        map (name: {
          inherit key name;
        });
    in
    lib.optionals (store.cache != null) (
      under "cache.near" [ store.cache.near ] ++ under "cache.far" store.cache.far
    )
    ++ lib.optionals (store.mirrors != null) (under "mirrors.of" store.mirrors.of)
    ++ lib.optionals (store.filter != null) (under "filter.store" [ store.filter.store ])
    ++ lib.optionals (store.join != null) (under "join" store.join);
  partsOf = name: map (member: member.name) (membersOf stores.${name});

  kinds = [
    "url"
    "cache"
    "mirrors"
    "filter"
    "join"
  ];
  kindsOf = store: lib.filter (kind: store.${kind} != null) kinds;
  urlOf = store: if store.url == null then "" else store.url;

  # The ways from a store down through what it is made of that come to a store for the second time:
  # each as the names that it passes, in order.
  circles =
    path: name:
    if lib.elem name path then
      [ (path ++ [ name ]) ]
    else if stores ? ${name} then
      lib.concatMap (circles (path ++ [ name ])) (partsOf name)
    else
      [ ];
  # Told once, by the first of its names.
  circlesOf =
    name:
    lib.filter (circle: lib.last circle == name && lib.head (lib.naturalSort circle) == name) (
      circles [ ] name
    );

  caches = lib.filterAttrs (_: store: store.cache != null) stores;
  nearUrl = cache: urlOf (stores.${cache.cache.near} or { url = "local:"; });

  # "/srv/tree/", "/srv//tree" and "/srv/./tree" are one place.
  parts = path: lib.filter (part: part != "" && part != ".") (lib.splitString "/" path);
  placed = lib.mapAttrsToList (name: mount: {
    inherit name;
    path = "/" + lib.concatStringsSep "/" (parts mount.path);
    written = mount.path;
  }) mounts;
  # Each two of a list.
  pairsOf =
    list: lib.concatLists (lib.imap0 (i: a: map (b: { inherit a b; }) (lib.drop (i + 1) list)) list);
  pairs = pairsOf placed;
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
    assertion = kindsOf store != [ ];
    message = ''the store "${name}" does not say where it is or what it is made of. Set `stores.${name}.url`, as in "local:/var/lib/castore-fs", or one of `cache`, `mirrors`, `filter` and `join`.'';
  }) stores
  ++ lib.mapAttrsToList (name: store: {
    assertion = lib.length (kindsOf store) <= 1;
    message = ''the store "${name}" is two things at once: ${
      lib.concatMapStringsSep " and " (kind: "`${kind}`") (kindsOf store)
    }. Leave one of them, and give the others a store of their own.'';
  }) stores
  ++ lib.concatMap (
    name:
    map (circle: {
      assertion = false;
      message = ''the store "${name}" is made of itself: ${lib.concatStringsSep " of " circle}. Take one of them out of the circle.'';
    }) (lib.take 1 (circlesOf name))
  ) (lib.attrNames stores)
  ++ lib.mapAttrsToList (name: store: {
    assertion = lib.hasPrefix "local:" (nearUrl store);
    message = ''the cache "${name}" is to be kept in the store "${store.cache.near}", which is in no folder of this machine. Declare one that is, as in `stores.cached.url = "local:/var/cache/castore-fs"`, and set `stores.${name}.cache.near = "cached"`.'';
  }) caches
  ++
    map
      (
        { a, b }:
        {
          assertion = nearUrl a.store != nearUrl b.store || !lib.hasPrefix "local:" (nearUrl a.store);
          message = ''the caches "${a.name}" and "${b.name}" are kept in one folder, where each would take the other's for its own to drop. Give one of them a near store of its own.'';
        }
      )
      (
        pairsOf (
          lib.filter (cache: stores ? ${cache.store.cache.near}) (
            lib.mapAttrsToList (name: store: { inherit name store; }) caches
          )
        )
      )
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
        ]
    ) cfg.stores
  )
  ++ lib.mapAttrsToList (name: store: {
    assertion =
      store.credential != null
      -> lib.any (scheme: lib.hasPrefix scheme (urlOf store)) [
        "grpc+https:"
        "grpc+unix:"
        "objectstore+"
      ];
    message =
      if lib.hasPrefix "grpc+http:" (urlOf store) then
        ''the token of the store "${name}" would travel in the clear. Have its server speak TLS, and write `grpc+https:`.''
      else
        ''the store "${name}" is behind no server that asks for a credential. Leave out `stores.${name}.credential`, or set it on the store whose URL names that server.'';
  }) cfg.stores
  ++ lib.mapAttrsToList (name: store: {
    assertion =
      store.tls.authorities != null || store.tls.certificate != null || store.tls.key != null
      -> lib.hasPrefix "grpc+https:" (urlOf store);
    message = "`stores.${name}.tls` is for servers that are reached by `grpc+https:`, which this one is not. Leave it out, or set it on the store whose URL names that server.";
  }) cfg.stores
  ++ lib.mapAttrsToList (name: store: {
    assertion = (store.tls.certificate == null) == (store.tls.key == null);
    message = ''the store "${name}" has one half of a certificate and its key. Set both `stores.${name}.tls.certificate` and `stores.${name}.tls.key`.'';
  }) cfg.stores
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
        ];
      in
      !lib.any (lib.hasInfix builtins.storeDir) (lib.filter secret inUrl ++ inKeys);
    message = ''a secret of the store "${name}" is in the Nix store, where everybody can read it. Put it into `credentials.${name}` as the path of a file on the machine, and name it in `stores.${name}.credential` or `stores.${name}.tls.key`.'';
  }) stores
  ++ lib.mapAttrsToList (name: guest: {
    assertion =
      let
        chosen = if guest.store == null then lib.head names else guest.store;
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
    message = ''the guest "${name}" is isolated, and a process that has given up every file has nowhere to keep what it learns. Leave out `virtiofs.${name}.warmup`, or `virtiofs.${name}.isolated`.'';
  }) cfg.virtiofs
  ++ lib.mapAttrsToList (name: guest: {
    assertion = if guest.isolated then guest.settings == { } else guest.extraFlags == [ ];
    message =
      if guest.isolated then
        ''`virtiofs.${name}.settings` is for the daemon's file, and "${name}" is served by a process of its own. Say it in `virtiofs.${name}.extraFlags`.''
      else
        ''`virtiofs.${name}.extraFlags` are for a process of its own, and "${name}" is served by the daemon. Say it in `virtiofs.${name}.settings`, or set `virtiofs.${name}.isolated`.'';
  }) cfg.virtiofs
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
