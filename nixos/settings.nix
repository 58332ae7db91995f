# `services.castore-fs.settings`: the daemon's file, every key of it (tests/nix/run compares them with
# docs/config.md). What a value has to be beside its type `check-config` judges.
{ lib, format }:

let
  inherit (lib) mkOption types;

  tableWith =
    options:
    types.submodule {
      freeformType = format.type;
      inherit options;
    };
  tableOf = options: types.attrsOf (tableWith options);

  optional =
    type: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };
  required =
    type: description:
    mkOption {
      inherit type description;
    };

  names = types.listOf types.str;
  id = types.ints.u32;
  listing = import ./listing.nix { inherit types; };
  store = optional types.str "The name of a store; null for the only one.";
  warmup = optional (types.enum [
    "learn"
    "off"
  ]) "Whether what is read first is recorded, and fetched first the next time; null for `off`.";
  size = optional types.str;
  gid = optional id "Owner of every file: group id; null for 0.";
  uid = optional id "Owner of every file: user id; null for 0.";
  xattr = optional types.bool "Whether extended attributes, which have digests, are answered.";
  friendly = option: "See {option}`services.castore-fs.stores.<name>.${option}`.";
in
{
  freeformType = format.type;

  options = {
    state-dir = optional types.str "The directory for what the service keeps; null for systemd's `StateDirectory=`.";
    drain = optional types.str "How long a stop waits for programs that use a mount; null for `20s`.";

    stores = mkOption {
      type = tableOf {
        url = optional types.str (friendly "url");
        token-file = optional types.str "The file with the bearer token for a gRPC server.";
        tls-ca-cert-path = optional types.str (friendly "tls.authorities");
        tls-client-cert-path = optional types.str "The file with the certificate (PEM) to show.";
        tls-client-key-path = optional types.str "The file with that certificate's key (PEM).";
        cache = optional (tableWith {
          near = required types.str (friendly "cache.near");
          far = required names (friendly "cache.far");
          size = size (friendly "cache.size");
          keep-free = size (friendly "cache.keepFree");
          roots-max-age = optional types.str (friendly "cache.rootsMaxAge");
        }) (friendly "cache");
        binary-cache = optional (tableWith {
          url = required (types.either types.str names) (friendly "binaryCache.url");
          into = required types.str (friendly "binaryCache.into");
          trusted-public-keys = optional names (friendly "binaryCache.trustedPublicKeys");
          require-signatures = optional types.bool (friendly "binaryCache.requireSignatures");
          closure = optional (types.enum [
            "fetch"
            "narinfos"
            "off"
          ]) (friendly "binaryCache.closure");
          netrc-file = optional types.str "A netrc(5) file with login and password.";
          token-file = optional types.str "A file with a bearer token.";
          size = size (friendly "binaryCache.size");
          keep-free = size (friendly "binaryCache.keepFree");
        }) (friendly "binaryCache");
        mirrors = optional (tableWith {
          of = required names (friendly "mirrors.of");
          order = optional types.str (friendly "mirrors.order");
        }) (friendly "mirrors");
        filter = optional (tableWith {
          store = required types.str (friendly "filter.store");
          roots = required names (friendly "filter.roots");
        }) (friendly "filter");
        join = optional names (friendly "join");
        verify = optional (types.enum [
          "root"
          "chunks"
        ]) "For upstreams that have chunks and no proofs: when bytes are handed out; null for `root`.";
      };
      default = { };
      description = "Stores; see {option}`services.castore-fs.stores`.";
    };

    mounts = mkOption {
      type = tableOf {
        inherit store;
        path = required types.str "Where to mount.";
        device = optional types.str "`fd:NAME`, a descriptor of `/dev/fuse` that was passed on under that name.";
        root = optional types.str "The directory to show at the top, instead of the root nodes.";
        follow = optional types.bool "Whether the mount shows another tree once the name in `root` stands for one; null for `true`.";
        list-root = optional listing "What listing the root gives.";
        names = optional (types.enum [
          "any"
          "store-paths"
          "valid-paths"
        ]) "Which names of roots the store is asked for; null for `any`.";
        when-unreachable = optional (types.enum [
          "error"
          "absent"
        ]) "What looking up an unknown root gives while the store cannot be reached; null for `error`.";
        allow-other = optional types.bool "Whether other users see the mount.";
        reads = optional (types.enum [
          "page-cache"
          "passthrough"
        ]) "How bytes come to their readers; null for `page-cache`, which verifies every byte.";
        view = optional (types.enum [
          "fuse"
          "auto"
          "image"
        ]) "What the kernel mounts; null for `auto`.";
        images = optional types.bool "Whether trees are shown as disk images too, in `.images`.";
        image-patience = optional types.str "For how long a read of an image in `.images` is repeated while its endpoint fails; null for `10m`.";
        mount-options = optional (types.listOf types.str) "Options that mount(8) has for every file system.";
        read-ahead = size "How far the kernel reads ahead of sequential readers; null for `1MiB`.";
        directory-memory = size "How much memory may hold Directories; null for `512MiB`.";
        threads = optional (types.ints.between 1 1024) "Threads that read requests; null for one for each processor.";
        inherit
          gid
          uid
          warmup
          xattr
          ;
        latency-guard = optional types.bool "Whether processors are kept from sleeping during a walk; null for machines with two to eight of them.";
      };
      default = { };
      description = "Mounts; see {option}`services.castore-fs.mounts`.";
    };

    images = mkOption {
      type = tableOf {
        roots = optional names "The names of the roots, in the store of the mount that shows the image.";
        roots-from = optional types.str "A file with these names, one a line, instead.";
      };
      default = { };
      description = "Images of several roots, which a mount with `images = true` shows as `.images/NAME.erofs`.";
    };

    virtiofs = mkOption {
      type = tableOf {
        inherit store;
        socket = required types.str "Where the virtual machine's monitor connects.";
        socket-mode = optional types.str "The socket's permissions, in octal.";
        tag = optional types.str "The tag, for monitors that ask for it.";
        root = optional types.str "The directory to show at the top, instead of the root nodes.";
        list-root = optional listing "What listing the root gives.";
        roots-from = optional types.str "A file with the names of the roots that are shown, one a line.";
        queues = optional (types.ints.between 1 63) "Request queues, each with a thread; null for 8.";
        inherit
          gid
          uid
          warmup
          xattr
          ;
      };
      default = { };
      description = "Virtual machines; see {option}`services.castore-fs.virtiofs`.";
    };

    listen = mkOption {
      type = tableOf {
        inherit store;
        address = mkOption {
          type = types.str;
          example = "unix:/run/castore-fs/castore.sock";
          description = "`unix:/PATH`, `HOST:PORT`, or `systemd:NAME` for a socket unit's.";
        };
        protocol =
          optional
            (types.enum [
              "grpc"
              "binary-cache"
              "nix-daemon"
            ])
            "What is spoken there; null for `grpc`. A `binary-cache` is one of Nix' substituters, a `nix-daemon` a store of Nix that is only read.";
        priority = optional types.ints.unsigned "Of a binary cache: smaller is asked first; null for 30.";
        secret-key-file = optional types.str "Of a binary cache: the secret key that signs every path.";
        read-without-token = optional types.bool "Of a binary cache: whether reading takes no token.";
        socket-mode = optional types.str "A unix socket's permissions, in octal; null for `600`.";
        writable = optional types.bool "Whether clients may add to the store. What is there under a name stays.";
        allow-replace = optional types.bool "Whether clients may replace and remove roots too.";
        token-file = optional types.str ''
          The file with the bearer tokens of which clients show one, one a line; after a token there may be
          what it gives the right to: `read`, `add`, `replace`.
        '';
        tls-cert-path = optional types.str "The file with the certificate chain (PEM) for TLS on `HOST:PORT`.";
        tls-key-path = optional types.str "The file with that certificate's private key (PEM).";
        tls-client-ca-path = optional types.str "The authorities (PEM) of whose certificates clients show one.";
        keep-free = size "What clients that add leave free on the store's disk; null for `1GiB`.";
        max-upload = size "The most that one upload may have; null for `1TiB`.";
        max-connections = optional types.ints.positive "Connections at once; null for 512.";
        max-calls = optional types.ints.positive "Calls at once on a connection; null for 256.";
      };
      default = { };
      description = "Where stores are served, over gRPC or as binary caches.";
    };

    control = mkOption {
      type = tableWith {
        socket = optional types.str "The socket that `castore-fs status` asks; null for `control.sock` in `/run/castore-fs`.";
      };
      default = { };
      description = "How the running service is asked.";
    };

    log = mkOption {
      type = tableWith {
        level = optional types.str "What is logged, as in `RUST_LOG`; null for `info`.";
        format = optional (types.enum [
          "auto"
          "journal"
          "text"
          "json"
        ]) "In what shape; null for the journal's.";
        otlp = optional types.str "`http://HOST:PORT` of an OpenTelemetry collector for spans; none if null.";
        slow-requests = optional types.str "How long a request may take without being logged.";
      };
      default = { };
      description = "What is logged, and how.";
    };

    metrics = mkOption {
      type = tableWith {
        address = optional types.str "Where metrics are served over HTTP; nowhere if null.";
      };
      default = { };
      description = "Metrics for Prometheus.";
    };
  };
}
