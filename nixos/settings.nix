# `services.castore-fs.settings`: the daemon's file. What is typed here is what the module itself
# looks at, or what most people write; everything else passes as it is, and `check-config` judges it.
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
  listing = import ./listing.nix { inherit types; };
  store = optional types.str "The name of a store; null for the only one.";
  warmup = optional (types.enum [
    "learn"
    "off"
  ]) "Whether what is read first is learned, and fetched first the next time; null for `off`.";
  friendly = option: "See {option}`services.castore-fs.stores.<name>.${option}`.";
in
{
  freeformType = format.type;

  options = {
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
          size = optional types.str (friendly "cache.size");
          keep-free = optional types.str (friendly "cache.keepFree");
          roots-max-age = optional types.str (friendly "cache.rootsMaxAge");
        }) (friendly "cache");
        mirrors = optional (tableWith {
          of = required names (friendly "mirrors.of");
          order = optional types.str (friendly "mirrors.order");
        }) (friendly "mirrors");
        filter = optional (tableWith {
          store = required types.str (friendly "filter.store");
          roots = required names (friendly "filter.roots");
        }) (friendly "filter");
        join = optional names (friendly "join");
      };
      default = { };
      description = "Stores; see {option}`services.castore-fs.stores`.";
    };

    mounts = mkOption {
      type = tableOf {
        inherit store;
        path = required types.str "Where to mount.";
        root = optional types.str "The directory to show at the top, instead of the root nodes.";
        list-root = optional listing "What listing the root gives.";
        names = optional (types.enum [
          "any"
          "store-paths"
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
        inherit warmup;
        stay-awake = optional types.bool "Whether processors are kept from sleeping during a walk; null for machines with two to eight of them.";
      };
      default = { };
      description = "Mounts; see {option}`services.castore-fs.mounts`.";
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
        inherit warmup;
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
        socket-mode = optional types.str "A unix socket's permissions, in octal; null for `600`.";
        writable = optional types.bool "Whether clients may add to the store.";
      };
      default = { };
      description = "Where stores are served over gRPC.";
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
