"""Messages of the two services, generated from the .proto files beside; `make stubs` writes them anew."""
