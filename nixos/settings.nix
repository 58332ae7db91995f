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
      type = tableOf {
        url = optional types.str "The store's URL.";
        token-file = optional types.str "The file with the token that the server asks for.";
        cache = optional (types.submodule {
          freeformType = format.type;
          options = {
            near = mkOption {
              type = types.str;
              description = "The name of the store that keeps.";
            };
            far = mkOption {
              type = types.listOf types.str;
              description = "The names of the stores that are asked.";
            };
            size = optional types.str "How much to keep, as in `200GiB`.";
            keep-free = optional types.str "How much of the disk to leave free, as in `10GiB`.";
          };
        }) "A store that keeps near what others have far away.";
      };
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

    virtiofs = mkOption {
      type = tableOf {
        inherit store;
        socket = mkOption {
          type = types.str;
          example = "/run/castore-fs/guest.sock";
          description = "The socket that the virtual machine's vhost-user device connects to.";
        };
      };
      default = { };
      description = "What is served to virtual machines.";
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
