# One of `services.castore-fs.stores`.
{ lib, ... }:

let
  inherit (lib) mkOption types;
in
{
  options = {
    url = mkOption {
      type = types.str;
      example = "grpc+https://castore.example.org";
      description = "The store's URL.";
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

    settings = mkOption {
      type = types.attrsOf types.anything;
      default = { };
      description = "Further keys of this store in the daemon's file.";
    };
  };
}
