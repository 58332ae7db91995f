# `services.castore-fs.settings`: the daemon's file. What is typed here is what the module itself
# looks at, or what most people write; everything else passes as it is, and `check-config` judges it.
{ lib, format }:

let
  inherit (lib) mkOption types;

  tableOf =
    options:
    types.attrsOf (
      types.submodule {
        freeformType = format.type;
        inherit options;
      }
    );

  optional =
    type: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };

  store = optional types.str "The name of a store; null for the only one.";
in
{
  freeformType = format.type;

  options = {
    stores = mkOption {
      # A store has a URL or is made of other stores: nothing that every one has.
      type = tableOf { };
      default = { };
      description = "Stores; see {option}`services.castore-fs.stores`.";
    };

    mounts = mkOption {
      type = tableOf {
        inherit store;
        path = mkOption {
          type = types.str;
          description = "Where to mount.";
        };
        root = optional types.str "The directory to show at the top, instead of the root nodes.";
        list-root = optional types.bool "Whether the root can be listed.";
        allow-other = optional types.bool "Whether other users see the mount.";
      };
      default = { };
      description = "Mounts; see {option}`services.castore-fs.mounts`.";
    };

    listen = mkOption {
      type = tableOf {
        inherit store;
        address = mkOption {
          type = types.str;
          example = "unix:/run/castore-fs/castore.sock";
          description = "`unix:/PATH` or `HOST:PORT`.";
        };
        writable = optional types.bool "Whether clients may add to the store.";
      };
      default = { };
      description = "Where stores are served over gRPC.";
    };

    metrics = mkOption {
      type = types.submodule {
        freeformType = format.type;
        options.address = optional types.str "Where metrics are served over HTTP; nowhere if null.";
      };
      default = { };
      description = "Metrics for Prometheus.";
    };
  };
}
