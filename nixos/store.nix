# One of `services.castore-fs.stores`.
{ lib, ... }:

let
  inherit (lib) mkOption types;
in
{
  options = {
    url = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "grpc+https://castore.example.org";
      description = "The store's URL; null for one that is put together from others.";
    };

    credential = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "upstream";
      description = ''
        The name in {option}`services.castore-fs.credentials` of the token that the store's server
        asks for.
      '';
    };

    cache = mkOption {
      type = types.nullOr (
        types.submodule {
          options = {
            near = mkOption {
              type = types.str;
              example = "disk";
              description = "The store on this machine, which keeps what was fetched.";
            };
            far = mkOption {
              type = types.listOf types.str;
              example = [ "upstream" ];
              description = "The stores that are asked for what is not near, in this order.";
            };
            size = mkOption {
              type = types.nullOr types.str;
              default = null;
              example = "200GiB";
              description = "How much to keep; null for the daemon's default.";
            };
            keepFree = mkOption {
              type = types.nullOr types.str;
              default = null;
              example = "10GiB";
              description = "How much of the disk to leave free; null for the daemon's default.";
            };
          };
        }
      );
      default = null;
      description = "A store that keeps near what others have far away.";
    };

    settings = mkOption {
      type = types.attrsOf types.anything;
      default = { };
      description = "Further keys of this store in the daemon's file.";
    };
  };
}
