# The friendly options in the daemon's own format: the tables of its file, and the URL by
# which a command opens a store. A secret is named by where systemd puts it for the unit that needs it.
{ lib }:

let
  present = lib.filterAttrs (_: value: value != null);
  orNull = f: value: if value == null then null else f value;

  # What a store's server asks for: a key of the file where it is a gRPC server or a binary cache, a
  # parameter of the URL where it is a cloud.
  secrets =
    unit: store:
    let
      at = orNull (name: "/run/credentials/${unit}/${name}");
      inBucket = lib.hasPrefix "objectstore+" (toString store.url);
    in
    {
      inherit at;
      keys = present {
        token-file = if inBucket || store.binaryCache != null then null else at store.credential;
        # A path of Nix is copied into the store, and has to stay there as long as the machine has the file.
        tls-ca-cert-path = orNull (path: "${path}") store.tls.authorities;
        tls-client-cert-path = at store.tls.certificate;
        tls-client-key-path = at store.tls.key;
      };
      parameters = present {
        credentials-file = if inBucket then at store.credential else null;
      };
    };

  withParameters =
    url: parameters:
    lib.foldl' (
      url: name:
      let
        separator = if lib.hasInfix "?" url then "&" else "?";
        value = lib.replaceStrings [ "%2F" ] [ "/" ] (lib.escapeURL parameters.${name});
      in
      "${url}${separator}${name}=${value}"
    ) url (lib.attrNames parameters);

  # Text in which systemd would expand specifiers: % begins one.
  specifiers = lib.replaceStrings [ "%" ] [ "%%" ];

  # A command line as systemd reads it, which expands specifiers and variables, and takes escapes of C within
  # quotes.
  execArgs = lib.concatMapStringsSep " " (
    argument:
    let
      text = "${argument}";
    in
    # A pattern may refer to no store path.
    if builtins.match "[A-Za-z0-9_@:,./+=?&-]+" (builtins.unsafeDiscardStringContext text) != null then
      text
    else
      lib.replaceStrings [ "%" "$" ] [ "%%" "$$" ] (builtins.toJSON text)
  );

  # The names that a guest with a `closure` is shown. It is gone with the boot, and every guest too.
  closureFile = name: "/run/castore-fs-closures/${name}";
in
{
  inherit closureFile execArgs specifiers;

  # The table of one of `stores`, for the daemon that `unit` runs.
  storeSettings =
    unit: store:
    let
      inherit (secrets unit store) at keys parameters;
    in
    store.settings
    // present {
      url = orNull (url: withParameters url parameters) store.url;
      cache = orNull (
        cache:
        present {
          inherit (cache) near far size;
          keep-free = cache.keepFree;
          roots-max-age = cache.rootsMaxAge;
        }
      ) store.cache;
      binary-cache = orNull (
        cache:
        present {
          inherit (cache)
            url
            into
            closure
            size
            ;
          trusted-public-keys = cache.trustedPublicKeys;
          require-signatures = cache.requireSignatures;
          keep-free = cache.keepFree;
          netrc-file = at cache.netrc;
          token-file = at store.credential;
        }
      ) store.binaryCache;
      mirrors = orNull present store.mirrors;
      filter = orNull present store.filter;
      inherit (store) join;
    }
    // keys;

  # The URL by which a command in `unit` opens a store of the daemon's file (`daemon`): its keys are parameters
  # there. And the names of those of `credentials` that it takes.
  storeUrl =
    { daemon, unit }:
    credentials: store:
    let
      parameters =
        lib.mapAttrs (_: value: if lib.isBool value then lib.boolToString value else toString value)
          (
            lib.filterAttrs (_: value: value != null && !lib.isAttrs value && !lib.isList value) (
              removeAttrs store [ "url" ]
            )
          );
      url = withParameters (toString store.url) parameters;
      place = name: "/run/credentials/${daemon}/${name}";
    in
    {
      url = lib.replaceStrings [ (place "") ] [ "/run/credentials/${unit}/" ] url;
      credentials = lib.filter (
        name: lib.any (end: lib.hasInfix "=${place name}${end}" "${url}&") [ "&" ]
      ) credentials;
    };

  # The table of one of `mounts`.
  mountSettings =
    mount:
    # Nix looks up every name that it is about to create, and has to do its work without the store below.
    lib.optionalAttrs mount.overNixStore {
      list-root = "empty";
      names = "store-paths";
      when-unreachable = "absent";
    }
    // mount.settings
    // present {
      inherit (mount) store path;
      list-root = mount.listRoot;
      allow-other = mount.allowOther;
      mount-options = if mount.mountOptions == [ ] then null else mount.mountOptions;
    };

  # The table of one of `virtiofs`.
  virtiofsSettings =
    name: guest:
    guest.settings
    // present {
      inherit (guest)
        store
        socket
        tag
        root
        warmup
        ;
      socket-mode = guest.socketMode;
      list-root = guest.listRoot;
      roots-from = if guest.closure == null then null else closureFile name;
    };
}
